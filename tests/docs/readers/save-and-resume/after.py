from workerd.testing import attempt

assert attempt(import_rows, {"file": "rows"}, saved=1).payload == 3
assert stored == ["b", "c"]
assert attempt(order, {"order_id": 7}).success
assert attempt(export, {}, saved=2).success
assert uploaded == [3]
