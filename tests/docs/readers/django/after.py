while not result.is_finished:
    result.refresh()
assert result.status.value == "SUCCESSFUL", result.errors
