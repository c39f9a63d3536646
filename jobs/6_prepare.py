import sys

from lspm_ray.cli import main

main(["prepare", *sys.argv[1:]])
