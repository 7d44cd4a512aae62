"""Files: nothing outside the program's own directory is read, seen or changed, and that one does not last."""

from __future__ import annotations

from collections.abc import Sequence

from behaviours.checks import ATTEMPTS, denied, described, each_denied
from behaviours.entry import Behaviour, Facts, Outcome

AREA = "filesystem"


def wiped(results: Sequence[Outcome], facts: Facts) -> str:
    """The second program found nothing of the first, which could write (or was refused that altogether)."""
    first, second = results
    if first.stdout != "kept\n" and (unfit := denied()([first], facts)):
        return unfit
    return "" if second.stdout == "[]\n" else f"something was left of the program before: {described(second)}"


BEHAVIOURS = (
    Behaviour(
        name="read etc passwd",
        area=AREA,
        code="with open('/etc/passwd') as file:\n    print('DONE', file.read())",
        holds=denied(),
    ),
    Behaviour(
        name="read secret file",
        area=AREA,
        code="with open(SECRET_FILE) as file:\n    print('DONE', file.read())",
        holds=denied(),
    ),
    Behaviour(
        name="stat secret file",
        area=AREA,
        code="import os\nprint('DONE', os.stat(SECRET_FILE).st_size)",
        holds=denied(),
    ),
    Behaviour(
        name="write outside",
        area=AREA,
        code=ATTEMPTS
        + """\
attempt('new file', lambda: open(OUTSIDE_DIR + '/new', 'w').close())
attempt('new directory', os.mkdir, OUTSIDE_DIR + '/folder')
attempt('new link', os.symlink, 'target', OUTSIDE_DIR + '/link')
attempt('rename', os.rename, SECRET_FILE, OUTSIDE_DIR + '/renamed')
attempt('truncate', os.truncate, OUTSIDE_DIR + '/other', 1)
attempt('remove', os.remove, OUTSIDE_DIR + '/other')
""",
        holds=each_denied(),
    ),
    Behaviour(
        name="append secret file",
        area=AREA,
        code="with open(SECRET_FILE, 'a') as file:\n    file.write('forged')\nprint('DONE')",
        holds=denied(),
    ),
    Behaviour(
        name="chmod secret file",
        area=AREA,
        code=ATTEMPTS
        + """\
attempt('chmod', os.chmod, SECRET_FILE, 0o777)
attempt('chmod of the directory', os.chmod, OUTSIDE_DIR, 0o711)
attempt('chown', os.chown, SECRET_FILE, os.getuid(), os.getgid())
attempt('extended attribute', os.setxattr, SECRET_FILE, 'user.mark', b'forged')
""",
        holds=each_denied("ENOTSUP"),
    ),
    Behaviour(
        name="utime secret file",
        area=AREA,
        code="import os\nos.utime(SECRET_FILE, (1, 1))\nprint('DONE')",
        holds=denied(),
    ),
    Behaviour(
        name="rmtree outside",
        area=AREA,
        code="import shutil\nshutil.rmtree(OUTSIDE_DIR)\nprint('DONE')",
        holds=denied(),
        harmless=False,
    ),
    Behaviour(
        name="symlink escape",
        area=AREA,
        code="""\
import os
os.symlink(OUTSIDE_DIR, 'door')
with open(os.path.join('door', os.path.basename(SECRET_FILE))) as file:
    print('DONE', file.read())
""",
        holds=denied(),
    ),
    Behaviour(
        name="hardlink secret",
        area=AREA,
        code="import os\nos.link(SECRET_FILE, 'mine')\nwith open('mine') as file:\n    print('DONE', file.read())",
        # Landlock's word for a link between two hierarchies is EXDEV.
        holds=denied("EXDEV"),
    ),
    Behaviour(
        name="poison site packages",
        area=AREA,
        # Opened for writing and left as it is: enough to see that it could be changed.
        code=ATTEMPTS
        + """\
import numpy, json
attempt('installed package', lambda: open(numpy.__file__, 'a').close())
attempt('standard library', lambda: open(json.__file__, 'a').close())
""",
        holds=each_denied(),
    ),
    Behaviour(
        name="tmp is private and wiped",
        area=AREA,
        code=(
            """\
import os, tempfile
with open('left-behind', 'w') as file:
    file.write('a')
os.makedirs('left-behind-too/deep')
os.close(tempfile.mkstemp(prefix='left-behind')[0])
print('kept')
""",
            """\
import os
places = {os.getcwd(), os.environ.get('TMPDIR', '.'), '/tmp', '/var/tmp', '/dev/shm'}
names = []
for place in places:
    try:
        names += os.listdir(place)
    except OSError:
        continue
print([name for name in names if name.startswith('left-behind')])
""",
        ),
        holds=wiped,
    ),
)
