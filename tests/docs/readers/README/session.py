from tests.docs.readers import mysql_connection

connection = mysql_connection()
connection.cursor().execute("CREATE TABLE images (name VARCHAR(50))")
