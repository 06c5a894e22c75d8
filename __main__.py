"""Command line of winback."""


def main() -> int:
    raise SystemExit("not yet")


if __name__ == "__main__":
    main()
