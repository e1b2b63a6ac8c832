"""Two orders: one is committed with its job, one rolled back with its job."""

from __future__ import annotations

import os

from handlers import confirm
from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from workerd import Client
from workerd.contrib.sqlalchemy import enqueue
from workerd.errors import NotFound


class Base(DeclarativeBase):
    """The models."""


class Order(Base):
    """An order."""

    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    mail: Mapped[str]


engine = create_engine(os.environ["WORKERD_STORE__URL"])
Base.metadata.create_all(engine)

with Session(engine) as session:
    order = Order(mail="ada@example.org")
    session.add(order)
    session.flush()
    done = enqueue(session, confirm.spec(order=order.id, mail=order.mail))
    session.commit()

with Session(engine) as session:
    lost = enqueue(session, confirm.spec(order=0, mail="nobody@example.org"))
    session.rollback()

with Client() as client:
    print(client.wait(done.id, timeout="20s").result)
    try:
        client.get(lost.id)
    except NotFound as error:
        print("rolled back:", error)
    else:
        raise SystemExit("the job of the order that was rolled back exists")
engine.dispose()
