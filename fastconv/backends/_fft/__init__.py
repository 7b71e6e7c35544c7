"""The tiled FFT engine: transforms of tiles as passes of small radices over vectors.

codelets.py    one compiled function per radix, called through its address; products of spectra
transform.py   a tile's transform and its inverse from passes and transpositions; twiddle tables
tiles.py       reading tiles of images and kernels, writing tiles of results
kernels.py     the parallel kernels
cutting.py     which tiles: lengths, counts, predicted times
"""
