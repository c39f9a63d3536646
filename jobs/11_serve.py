import sys

from lspm_ray.cli import main

main(["serve", *sys.argv[1:]])
