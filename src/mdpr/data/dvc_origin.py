"""A source that DVC tracks in a Git repository: exactly one version of it, in a temporary folder.

DVC reads the repository without the git program. The login of a private one comes from MDPR_GIT_USERNAME and
MDPR_GIT_PASSWORD, or from Git's own credential helpers, and stays in this process. The store reads its own variables
(AWS_ACCESS_KEY_ID and so on).
"""

from __future__ import annotations

import logging
import os
import posixpath
import pwd
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mdpr.artifacts import Origin, StoreOrigin
from mdpr.data.intake import map_in_order
from mdpr.data.object_store import copied
from mdpr.errors import DataError, one_line
from mdpr.params import PrepareParams
from mdpr.params.section import is_address
from mdpr.progress import track

if TYPE_CHECKING:
    from dvc.api import DVCFileSystem

logger = logging.getLogger(__name__)
NO_PREVIOUS = (
    "there is no such folder; under `dvc repro`, which removes outputs before it makes them, name a Git revision "
    "(HEAD, a tag)"
)
DIGESTS = ("md5", "md5-dos2unix")  # of DVC 3, and of what DVC 2 wrote


@contextmanager
def located(params: PrepareParams) -> Iterator[tuple[Path, Origin | StoreOrigin | None]]:
    """The folder of the source: `root`, or what lies in an object store, or the version that repo, rev and path name.

    The last two are a temporary folder, for as long as this lasts. Raises `DataError` in one line for a repository, a
    revision, a path or a store that is not there or does not answer, and for a file whose content differs from what
    DVC recorded.
    """
    if not params.repo and not is_address(params.root):
        yield Path(params.root), None
        return
    with pulled(params) if params.repo else copied(params.root) as (root, origin):
        try:
            yield root, origin
        except DataError as error:  # what is wrong lies in its origin, not in a folder that is gone in a moment
            where = f"{params.path} of {params.repo}" if params.repo else params.root
            raise DataError(str(error).replace(str(root), where)) from None


@contextmanager
def pulled(params: PrepareParams) -> Iterator[tuple[Path, Origin]]:
    """The tracked folder, every file checked against DVC's digest, for as long as this lasts; and what it is."""
    try:
        from dvc.api import DVCFileSystem
        from dvc.repo.open_repo import clean_repos
    except ModuleNotFoundError as error:
        raise DataError(f"prepare.repo needs {error.name}: pip install 'mdpr[pipeline,s3]'") from None

    name_user()
    # Of a folder DVC would take what is checked out; its last commit is a version.
    rev = params.rev or ("HEAD" if Path(params.repo).exists() else None)
    where = f"{params.path} of {params.repo}{f' at {params.rev}' if params.rev else ''}"
    with tempfile.TemporaryDirectory(prefix="mdpr-source-") as name:
        target = Path(name) / posixpath.basename(params.path.rstrip("/"))
        try:
            _offer_login(params.repo)
            files = DVCFileSystem(params.repo, rev=rev, subrepos=True)
            kind, digest = _digest(files, params.path, where)
            commit = str(files.repo.get_rev())
            _copy(files, params.path, target, where)
        except _failures() as error:
            fix = _fix(error, "check prepare.rev", "prepare.repo")
            raise DataError(f"{where} cannot be pulled ({one_line(_cause(error))[:300]}): {fix}") from None
        finally:
            clean_repos()  # the clones of this process, which DVC keeps for the next call
        logger.info("pulled %s: commit %s, %s %s", where, commit[:12], kind, digest)
        yield target, Origin(repo=params.repo, rev=params.rev, path=params.path, commit=commit, md5=digest)


def read_tracked(rev: str, path: str) -> bytes:
    """A file that DVC tracks in the project around the working folder, as it was at `rev`.

    Raises `DataError` in one line if there is no such revision or no such file at it, or if the store does not answer.
    """
    try:
        from dvc.api import DVCFileSystem
        from dvc.exceptions import NotDvcRepoError
        from dvc.repo import Repo
        from dvc.repo.open_repo import clean_repos
    except ModuleNotFoundError as error:
        raise DataError(
            f"{rev} is no folder, and a revision of data needs {error.name}: pip install 'mdpr[pipeline,s3]'"
        ) from None

    name_user()
    try:
        files = DVCFileSystem(Repo.find_root(), rev=rev)
        try:
            files.info(path)
        except FileNotFoundError:
            raise DataError(f"{path} at {rev} is not there: name a revision at which DVC tracks it") from None
        content: bytes = files.read_bytes(path)
    except _failures() as error:
        fix = NO_PREVIOUS if isinstance(error, NotDvcRepoError) else _fix(error, NO_PREVIOUS, "the project")
        raise DataError(f"{path} at {rev} cannot be read ({one_line(_cause(error))[:300]}): {fix}") from None
    finally:
        clean_repos()
    return content


def name_user() -> None:
    """Give Git and DVC a user's name and home: the uid of a container need not have an entry in passwd."""
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        os.environ.setdefault("LOGNAME", f"uid{os.getuid()}")
        os.environ.setdefault("HOME", tempfile.gettempdir())


def _digest(files: DVCFileSystem, path: str, where: str) -> tuple[str, str]:
    """Name and value of the digest that DVC has of a folder which it tracks."""
    try:
        info = files.info(path)
    except FileNotFoundError:
        raise DataError(f"{where}: there is no such path; `dvc list --dvc-only -R REPO` shows what is there") from None
    tracked = info.get("dvc_info") or {}
    found = [(name, str(tracked[name])) for name in DIGESTS if tracked.get(name)]
    if not found:
        raise DataError(f"{where} is not tracked by DVC: `dvc list --dvc-only -R REPO` shows what is")
    if info["type"] != "directory":
        raise DataError(f"{where} is a file: prepare.path must name the folder of the source")
    return found[0]


def _copy(files: DVCFileSystem, path: str, target: Path, where: str) -> None:
    """Every file below `path`, several at a time."""
    from dvc.fs import localfs
    from dvc_data.hashfile.hash import hash_file

    def fetch(item: tuple[str, dict[str, Any]]) -> None:
        name, info = item
        local = target / posixpath.relpath(name, path)
        local.parent.mkdir(parents=True, exist_ok=True)
        files.get_file(name, str(local))
        tracked = info.get("dvc_info") or {}
        for kind in DIGESTS:
            if kind in tracked and hash_file(str(local), localfs, kind)[1].value != tracked[kind]:
                raise DataError(f"{where}: {name} is damaged in the store ({kind} differs): push it again")

    found = sorted(files.find(path, detail=True).items())
    if not found:
        raise DataError(f"{where} holds no file")
    for _ in track(map_in_order(fetch, found), f"pull {posixpath.basename(path)}", total=len(found)):
        pass


def _offer_login(repo: str) -> None:
    """Give the login in the environment to DVC's Git client; without one, Git's credential helpers are used."""
    from scmrepo.git.credentials import Credential, memory_helper

    os.environ.setdefault("GIT_TERMINAL_PROMPT", "0")  # a question nobody answers would stop a task for ever
    username, password = os.environ.get("MDPR_GIT_USERNAME"), os.environ.get("MDPR_GIT_PASSWORD")
    if password and repo.startswith(("http://", "https://")):
        address = Credential(url=repo)
        key = Credential(protocol=address.protocol, host=address.host)
        login = Credential(protocol=address.protocol, host=address.host, username=username or "git", password=password)
        memory_helper[key] = login


def _failures() -> tuple[type[Exception], ...]:
    """The errors of DVC, Git and the stores."""
    from dvc.exceptions import DvcException
    from dvc_data.index import DataIndexError
    from scmrepo.exceptions import SCMError

    kinds: tuple[type[Exception], ...] = (DvcException, DataIndexError, SCMError, OSError)
    try:
        from botocore.exceptions import BotoCoreError, ClientError
    except ModuleNotFoundError:
        return kinds
    return (*kinds, BotoCoreError, ClientError)


def _cause(error: BaseException) -> BaseException:
    """The first cause: DVC wraps it in errors of its own."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _fix(error: Exception, revision: str, repository: str) -> str:
    """The fix for `error`: `revision` if the revision does not exist, else to check `repository`."""
    from dvc.scm import CloneError, RevError

    if isinstance(error, RevError):
        return revision
    if isinstance(error, CloneError):
        return f"check {repository}, the network, and MDPR_GIT_USERNAME and MDPR_GIT_PASSWORD"
    if isinstance(_cause(error), FileNotFoundError):
        return "see that it was pushed (`dvc push`), and that its DVC remote can be reached from here"
    return f"check {repository}, and address and keys of its DVC remote"
