# The cells of a sweep, for `python -m workflow.sweep`, which declares each as a .json file and asks
# for what is missing. A cell that fails leaves none of these outputs, so the next call tries again.


wildcard_constraints:
    sweep="[^/]+",
    cell="[^/]+",


rule cell:
    input:
        "build/sweeps/{sweep}/{cell}.json",
    output:
        "build/sweeps/{sweep}/{cell}.ipynb",
        "build/sweeps/{sweep}/{cell}.html",
        "build/sweeps/{sweep}/{cell}.csv",
    threads: 2
    shell:
        "python -m workflow.sweep cell {input:q}"
