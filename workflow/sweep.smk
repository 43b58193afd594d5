# The cells of a sweep. `python -m workflow.sweep` writes a .json file for each cell and requests the
# missing outputs. A cell that fails has none of these outputs, so the next call tries it again.


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
    log:
        "build/sweeps/{sweep}/{cell}.log",
    shell:
        "python -m workflow.sweep cell {input:q} > {log:q} 2>&1"
