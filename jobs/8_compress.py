import sys

from lspm_ray.cli import main

main(["compress", *sys.argv[1:]])
