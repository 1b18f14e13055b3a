"""The report: is a subset close to its pool, is it diverse, and what are its labels worth, compared with random ones?

measures.py     each number, from a subset and the pool
evaluation.py   all of them for one subset, and for random subsets of the same size
comparison.py   the table and the verdict
annotations.py, duplicates.py  labels, predictions, near-duplicates of the pool
gallery.py      chosen images and those they represent;  projection.py  the map;  page/  the HTML page
report_files.py from the options of report.py to its three files
"""
