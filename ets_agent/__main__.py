"""``python -m ets_agent`` is the command ``ets``."""

from ets_agent.cli import main

if __name__ == "__main__":
    main()
