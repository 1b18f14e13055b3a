"""The report: is a subset close to its pool, is it diverse, and what are its labels worth, compared with random ones?

measures.py      each number, from a subset and the pool; all of them, for random subsets of the same size too
comparison.py    the table and the verdict
annotations.py, duplicates.py  labels, predictions, masks, near-duplicates of the pool
pictures.py      contents of the HTML page (page/): the map, chosen images and those they represent
report_files.py  from the options of report.py to its three files
"""
