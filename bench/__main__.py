"""``python -m bench``: see `bench.cli`."""

# Followers are new processes, and import this module too: they need none of what it takes to run them.
if __name__ == "__main__":
    from bench.cli import main

    main()
