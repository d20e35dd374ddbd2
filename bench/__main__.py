"""``python -m bench``: see `bench.cli`."""

# Followers run in new processes, which import this module too. They need none of the imports of the command.
if __name__ == "__main__":
    from bench.cli import main

    main()
