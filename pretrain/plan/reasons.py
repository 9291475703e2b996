"""Why a plan chose what it chose."""


class Reasons(list[tuple[str, str, str]]):
    """Rows of the plan's table: what was chosen, its value, and why."""

    def add(self, what: str, value: str, why: str) -> None:
        self.append((what, value, why))

    def replace(self, what: str, value: str, why: str) -> None:
        """Change the row of `what`, or add it."""
        names = [row[0] for row in self]
        if what in names:
            self[names.index(what)] = (what, value, why)
        else:
            self.add(what, value, why)

    def choose(self, what: str, given: int | None, rule: int, why: str) -> int:
        """`given` if the user gave a value, else `rule`, whose reason is `why`."""
        value = given if given is not None else rule
        self.add(what, f"{value:,}", "given" if given is not None else why)
        return value
