"""``python3 -m dynamo.worker --backend NAME``: a worker of any installed engine."""

from dynamo.worker import main

if __name__ == "__main__":
    main()
