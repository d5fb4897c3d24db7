"""The most that is read of a file, looked at before its content: what is larger is damaged, or meant to do harm."""

SETTINGS = 2**20  # bytes of a recipe, config.json, run.json or predict.json
ALIASES = 20  # names in a recipe for what it said before: each may double what it holds
MASK = 2**26  # bytes of a mask's PNG
DETECTIONS = 2**30  # bytes of COCO's results
PACKED = 200  # times that a JSON text in a zip file may be longer than what is packed
PATH = 1000  # characters of a name in a zip file
FRAMES = 1000  # of a clip of JHMDB, the longest of which has 40
VALUES = 2**28  # numbers in a file of masks, as many as a thousand masks have
SENTENCE = 10_000  # characters, far beyond what any model reads
SPOOL = 16 * 2**30  # bytes on disk of the frames of an iterator, about ten minutes of HD at 10 frames per second
