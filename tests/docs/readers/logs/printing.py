from workerd import Context


def thumbnail(ctx: Context) -> None:
    ctx.log.warning("slow image", width=200)
    print("half of it is done")
    raise ValueError("no picture")
