images = ["cat.png", "dog.png"]
