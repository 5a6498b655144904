"""The cheapest division of a graph's values in two, as a minimum cut (Ford and Fulkerson, shortest paths first)."""

from collections import defaultdict, deque
from collections.abc import Hashable

Place = Hashable
NEVER = 1 << 62


class Cut:
    """Places joined by arrows; each place ends on one of two sides, and an arrow from ``START``'s side to ``END``'s
    costs its weight. ``NEVER`` is a weight that no cut pays."""

    START, END = "start", "end"

    def __init__(self) -> None:
        self._room: dict[Place, dict[Place, int]] = defaultdict(lambda: defaultdict(int))

    def arrow(self, a: Place, b: Place, weight: int) -> None:
        """``weight`` is paid where ``a`` is on the side of ``START`` and ``b`` is not."""
        self._room[a][b] = min(self._room[a][b] + weight, NEVER)
        self._room[b][a] += 0

    def tie(self, a: Place, b: Place) -> None:
        """Both on one side."""
        self.arrow(a, b, NEVER)
        self.arrow(b, a, NEVER)

    def solve(self) -> set[Place]:
        """The side of ``START`` of a cheapest cut: of all cheapest ones, the smallest side."""
        while True:
            came = self._search()
            if self.END not in came:
                return set(came)
            path, place = [], self.END
            while place != self.START:
                path.append((came[place], place))
                place = came[place]
            flow = min(self._room[a][b] for a, b in path)
            assert flow < NEVER, "something is tied to both sides"
            for a, b in path:
                self._room[a][b] -= flow if self._room[a][b] < NEVER else 0
                self._room[b][a] = min(self._room[b][a] + flow, NEVER)

    def _search(self) -> dict[Place, Place]:
        came: dict[Place, Place] = {self.START: self.START}
        queue = deque([self.START])
        while queue:
            place = queue.popleft()
            for following, room in self._room[place].items():
                if room and following not in came:
                    came[following] = place
                    if following == self.END:
                        return came
                    queue.append(following)
        return came
