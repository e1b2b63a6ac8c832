from tests.docs.readers import mysql_connection

connection = mysql_connection()
names = ["cat.png", "dog.png"]


def current_tenant() -> str:
    return "tenant-7"
