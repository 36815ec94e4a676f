"""A progress that adds up what it is told."""

from secateur.progress import Progress


class Counting(Progress):
    total = done = 0

    def start(self, what, total, unit="tokens"):
        self.total, self.unit = total, unit

    def advance(self, amount):
        self.done += amount
