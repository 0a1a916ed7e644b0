"""``python3 -m dynamo.cli``: the same as the console script, where scripts are not on the PATH."""

from dynamo.cli.program import main

if __name__ == "__main__":
    main()
