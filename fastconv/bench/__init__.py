"""The embedded benchmark behind `fastconv bench`: real layers, a photograph and an audio signal, timed and verified.

suite     what is convolved, as data
signals   the photograph, the chord, the room response and the low-pass filter
baseline  the same work done with NumPy and SciPy
measure   times every backend on every item and compares their results
report    the table and the JSON file
page      the HTML page
"""
