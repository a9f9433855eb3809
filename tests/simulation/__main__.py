"""python -m tests.simulation --help"""

from tests.simulation.many import main

if __name__ == "__main__":
    main()
