"""What `fastconv train` does: a small CNN learns handwritten digits, and shows what it took for what and what it learned.

digits.py    the data, the model, the training, the report in the terminal
picture.py   the report as a PNG (needs Pillow)
page.py      the report as one HTML page
"""
