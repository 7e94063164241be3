// fs.go is the jail: the one function that cleans paths, the trees that a user
// can reach, and what may be done to a name in them. Uploads are in upload.go,
// directories in dir.go.
//
// It knows no protocol: paths come in as the client wrote them, errors go out
// as Go errors, and proto.go turns them into reply codes. No function here
// takes a path to the kernel other than relative to a directory descriptor
// that the kernel itself keeps inside the jail.

package main

import (
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// reservedPrefix begins the names that berth keeps for itself; clients can
	// neither see nor name them (contract section 5).
	reservedPrefix = ".berth-"

	maxPath      = 4096 // PATH_MAX; longer ones the kernel refuses as well
	openat2Tries = 16   // openat2(2): EAGAIN when a rename races with "..", try again
)

// Errors of this file. The wrapped ones are the kernel's own; proto.go has the
// only table that turns either into reply codes.
var (
	errBadName    = errors.New("name with a control character that no line can carry")
	errReserved   = errors.New("name reserved for the server")
	errIsDir      = errors.New("is a directory")
	errNotRegular = errors.New("neither a regular file nor a directory")
	errReadOnly   = errors.New("read-only share")
	errShareRoot  = errors.New("the root of a share")
	errExists     = errors.New("already exists")
	errBusy       = errors.New("an upload is running there")
)

// offsetError is a restart that the file at hand cannot take up: have bytes
// are there and may be continued.
type offsetError struct{ have, want int64 }

func (e *offsetError) Error() string {
	return fmt.Sprintf("cannot restart at %d: %d bytes are there", e.want, e.have)
}

// --- paths ---

// cleanPath makes of what a client sent the absolute path it means, seen from
// cwd: always beginning with "/", without "." and ".." and double slashes, and
// never above "/". It is the only place where paths are cleaned, so that what
// was checked and what is opened cannot differ. Names are bytes: nothing but
// "/" has a meaning, and only NUL, CR and LF are refused, which the protocol
// cannot carry.
func cleanPath(cwd, name string) (string, error) {
	if strings.ContainsAny(name, "\x00\r\n") {
		return "", errBadName
	}
	if !strings.HasPrefix(name, "/") {
		name = cwd + "/" + name
	}
	if len(name) > maxPath {
		return "", syscall.ENAMETOOLONG
	}
	clean := path.Clean("/" + name)
	for i := range len(clean) {
		if clean[i] == '/' && isReserved(clean[i+1:]) {
			return "", errReserved
		}
	}
	return clean, nil
}

// isReserved tells whether a name is the server's own. Case makes no difference:
// on a disk that folds it (FAT, CIFS, ext4 with casefold) ".BERTH-state" is the
// directory with a demo's users.
func isReserved(name string) bool {
	return len(name) >= len(reservedPrefix) && strings.EqualFold(name[:len(reservedPrefix)], reservedPrefix)
}

// --- the jail ---

// A tree is a directory that a user may see, as a descriptor: his home, or a
// share. Names below it are resolved by openat2(2) with RESOLVE_BENEATH, or
// by os.Root where the kernel (before 5.6) or a sandbox has no openat2.
type tree struct {
	root    *os.Root
	dir     *os.File // the same directory; openat2 starts here
	openat2 bool
	write   bool
}

func openTree(dir string, write, openat2 bool) (*tree, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	f, err := root.Open(".")
	if err != nil {
		root.Close()
		return nil, err
	}
	return &tree{root: root, dir: f, openat2: openat2, write: write}, nil
}

func (t *tree) close() {
	t.dir.Close()
	t.root.Close()
}

// haveOpenat2 asks the running kernel, once. Seccomp filters that do not know
// the call answer EPERM or ENOSYS.
var haveOpenat2 = sync.OnceValue(func() bool {
	fd, err := unix.Openat2(unix.AT_FDCWD, ".", &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS})
	if err == nil {
		unix.Close(fd)
	}
	return err == nil
})

// open opens rel below the tree without ever leaving it: "..", absolute links
// and magic links are refused by the kernel. O_NONBLOCK is always on, so that
// a planted FIFO cannot hang the session.
func (t *tree) open(rel string, flags int) (*os.File, error) {
	if !t.openat2 {
		if flags&unix.O_PATH != 0 {
			// os.Root would take a link opened with O_PATH for the thing itself;
			// all that O_PATH opens here are directories.
			flags = flags&^unix.O_PATH | unix.O_RDONLY
		}
		f, err := t.root.OpenFile(rel, flags|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
		return f, escapes(err)
	}
	// openat2 allows few flags with O_PATH, and a directory needs no others.
	if flags |= unix.O_CLOEXEC; flags&(unix.O_PATH|unix.O_DIRECTORY) == 0 {
		flags |= unix.O_NOCTTY | unix.O_NONBLOCK
	}
	how := unix.OpenHow{Flags: uint64(flags), Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS}
	for try := 0; ; try++ {
		fd, err := unix.Openat2(int(t.dir.Fd()), rel, &how)
		if err == nil {
			return os.NewFile(uintptr(fd), rel), nil
		}
		if err == unix.EINTR || err == unix.EAGAIN && try < openat2Tries {
			continue
		}
		return nil, err
	}
}

// escapes gives os.Root's refusal to leave the tree, which no errno carries,
// the errno that openat2 has for it.
func escapes(err error) error {
	var errno syscall.Errno
	if err == nil || errors.As(err, &errno) || errors.Is(err, os.ErrClosed) {
		return err
	}
	return unix.EXDEV
}

// stat fills e for rel: what a link inside the tree leads to with follow, else
// the link itself.
func (t *tree) stat(rel string, follow bool, e *entry) error {
	if !t.openat2 {
		look := t.root.Lstat
		if follow {
			look = t.root.Stat
		}
		info, err := look(rel)
		if err != nil {
			return escapes(err)
		}
		sys := info.Sys().(*syscall.Stat_t)
		st := unix.Stat_t{Mode: sys.Mode, Uid: sys.Uid, Gid: sys.Gid, Nlink: sys.Nlink, Size: sys.Size, Dev: sys.Dev, Ino: sys.Ino}
		st.Mtim.Sec, st.Mtim.Nsec = sys.Mtim.Sec, sys.Mtim.Nsec
		e.fromStat(&st)
		if e.mode&unix.S_IFMT == unix.S_IFLNK {
			e.link, _ = t.root.Readlink(rel)
		}
		return nil
	}
	flags := unix.O_PATH
	if !follow {
		flags |= unix.O_NOFOLLOW
	}
	f, err := t.open(rel, flags)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := fstat(f, e); err != nil {
		return err
	}
	if e.mode&unix.S_IFMT == unix.S_IFLNK {
		e.link = readlink(int(f.Fd()), "")
	}
	return nil
}

// A jail is what one user can reach: his home at "/" and his shares below it.
// It is shared by all his sessions and safe for concurrent use.
type jail struct {
	home    *tree
	shares  map[string]*tree
	missing []error // shares that could not be opened, and so do not show
	refs    int     // sessions; guarded by jailSet.mu
	key     jailKey
	owner   jailOwner
}

// jailOwner is whose name listings show for files that the daemon owns.
type jailOwner struct {
	name string
	uid  uint32
}

// jailKey tells one jail from another: the user's name and where his trees
// are, so that a changed users.d file leads to a new jail at the next login.
type jailKey struct {
	user, trees string
	dev, ino    uint64
}

// A jailSet keeps one jail a user open as long as he has a session: ten
// thousand sessions of one camera cost two descriptors, not twenty thousand.
type jailSet struct {
	mu      sync.Mutex
	open    map[jailKey]*jail
	openat2 bool
}

func newJailSet() *jailSet {
	return &jailSet{open: map[jailKey]*jail{}, openat2: haveOpenat2()}
}

// shareSpec is a directory from outside the home that shows as /NAME.
type shareSpec struct {
	path  string
	write bool
}

// enter opens the user's jail, or joins the one his other sessions have. A
// home that does not exist is made (mode 0700); a home that was replaced by
// another directory meanwhile is seen by inode and opened anew. Every enter
// needs one leave.
func (js *jailSet) enter(user, home string, shares map[string]shareSpec) (*jail, error) {
	var st unix.Stat_t
	if err := unix.Stat(home, &st); err == unix.ENOENT {
		if err := os.MkdirAll(home, 0o700); err != nil {
			return nil, fmt.Errorf("make home: %w", err)
		}
		err = unix.Stat(home, &st)
		if err != nil {
			return nil, fmt.Errorf("home %q: %w", home, err)
		}
	} else if err != nil {
		return nil, fmt.Errorf("home %q: %w", home, err)
	}
	key := jailKey{user: user, trees: home, dev: uint64(st.Dev), ino: st.Ino}
	if len(shares) > 0 {
		var b strings.Builder
		b.WriteString(home)
		names := make([]string, 0, len(shares))
		for name := range shares {
			names = append(names, name)
		}
		slices.Sort(names)
		for _, name := range names {
			fmt.Fprintf(&b, "\x00%s\x00%s\x00%t", name, shares[name].path, shares[name].write)
		}
		key.trees = b.String()
	}

	if j := js.join(key, nil); j != nil {
		return j, nil
	}
	// Opened outside the lock: a home on a dead network disk must not hold up
	// everybody else's login.
	t, err := openTree(home, true, js.openat2)
	if err != nil {
		return nil, fmt.Errorf("home: %w", err)
	}
	j := &jail{home: t, key: key, owner: jailOwner{name: user, uid: uint32(os.Geteuid())}}
	for name, s := range shares {
		t, err := openTree(s.path, s.write, js.openat2)
		if err != nil {
			// A disk that is not plugged in must not keep its users out.
			j.missing = append(j.missing, fmt.Errorf("share %q: %w", name, err))
			continue
		}
		if j.shares == nil {
			j.shares = map[string]*tree{}
		}
		j.shares[name] = t
	}
	return js.join(key, j), nil
}

// join returns the jail that is open under key, with one session more; if there
// is none it is mine from now on, and if there is, mine is closed.
func (js *jailSet) join(key jailKey, mine *jail) *jail {
	js.mu.Lock()
	defer js.mu.Unlock()
	j := js.open[key]
	switch {
	case j == nil && mine == nil:
		return nil
	case j == nil:
		j = mine
		js.open[key] = j
	case mine != nil:
		mine.close()
	}
	j.refs++
	return j
}

// leave gives back what enter gave; the last one closes the descriptors.
func (js *jailSet) leave(j *jail) {
	js.mu.Lock()
	defer js.mu.Unlock()
	if j.refs--; j.refs == 0 {
		delete(js.open, j.key)
		j.close()
	}
}

func (j *jail) close() {
	j.home.close()
	for _, t := range j.shares {
		t.close()
	}
}

// locate tells which tree a clean path is in, and its name there ("." for the
// tree itself).
func (j *jail) locate(p string) (t *tree, rel string) {
	p = p[1:]
	if p == "" {
		return j.home, "."
	}
	if j.shares != nil {
		first, rest, _ := strings.Cut(p, "/")
		if t := j.shares[first]; t != nil {
			if rest == "" {
				rest = "."
			}
			return t, rest
		}
	}
	return j.home, p
}

// parent opens the directory that holds p for changing an entry of it. The
// roots of home and shares have no parent that a client may change.
func (j *jail) parent(p string) (dir *os.File, base string, err error) {
	t, rel := j.locate(p)
	if rel == "." {
		return nil, "", errShareRoot
	}
	if !t.write {
		return nil, "", errReadOnly
	}
	d, base := path.Split(rel)
	if d == "" {
		d = "."
	} else {
		d = d[:len(d)-1]
	}
	dir, err = t.open(d, unix.O_RDONLY|unix.O_DIRECTORY)
	if errors.Is(err, unix.EACCES) {
		// A drop box (mode -wx) can be written without being read.
		dir, err = t.open(d, unix.O_PATH|unix.O_DIRECTORY)
	}
	return dir, base, err
}

// fstat fills e from an open descriptor.
func fstat(f *os.File, e *entry) error {
	var st unix.Stat_t
	for {
		err := unix.Fstat(int(f.Fd()), &st)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		e.fromStat(&st)
		return nil
	}
}

// stat tells about p, following links that stay inside the jail.
func (j *jail) stat(p string) (entry, error) {
	var e entry
	t, rel := j.locate(p)
	if err := t.stat(rel, true, &e); err != nil {
		return e, err
	}
	e.name = path.Base(p)
	return e, nil
}

// openFile opens a regular file for reading and tells its state at that
// moment. Whatever else has the name is refused without blocking: the file is
// opened with O_NONBLOCK and looked at before anything is read.
func (j *jail) openFile(p string) (*os.File, entry, error) {
	var e entry
	t, rel := j.locate(p)
	f, err := t.open(rel, unix.O_RDONLY)
	if err != nil {
		if errors.Is(err, unix.ENXIO) { // a socket, or a device without a driver
			err = errNotRegular
		}
		return nil, e, err
	}
	if err = fstat(f, &e); err == nil {
		err = e.mustBeFile()
	}
	if err != nil {
		f.Close()
		return nil, e, err
	}
	e.name = path.Base(p)
	return f, e, nil
}

// isDir tells whether p is a directory that can be entered.
func (j *jail) isDir(p string) error {
	t, rel := j.locate(p)
	f, err := t.open(rel, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Faccessat(int(f.Fd()), ".", unix.X_OK, 0)
}

// mkdir makes one directory; errExists if the name is taken.
func (j *jail) mkdir(p string) error {
	dir, base, err := j.parent(p)
	if errors.Is(err, errShareRoot) {
		return errExists
	}
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := unix.Mkdirat(int(dir.Fd()), base, 0o777); err != nil {
		if err == unix.EEXIST {
			return errExists
		}
		return err
	}
	return nil
}

// remove deletes a file, a link or a special file, not a directory, and what
// is left of an interrupted upload over it.
func (j *jail) remove(p string) error {
	dir, base, err := j.parent(p)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := unix.Unlinkat(int(dir.Fd()), base, 0); err != nil {
		return err
	}
	unix.Unlinkat(int(dir.Fd()), partialName(base), 0)
	return nil
}

// rmdir removes an empty directory. Partials that only the server sees do not
// keep a directory alive that its user sees as empty; a running upload does.
func (j *jail) rmdir(p string) error {
	dir, base, err := j.parent(p)
	if err != nil {
		return err
	}
	defer dir.Close()
	err = unix.Unlinkat(int(dir.Fd()), base, unix.AT_REMOVEDIR)
	if err != unix.ENOTEMPTY && err != unix.EEXIST {
		return err
	}
	// O_NOFOLLOW, and only reserved names are touched: a directory swapped for
	// a link meanwhile cannot make this delete anything a client can name.
	fd, oerr := unix.Openat(int(dir.Fd()), base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if oerr != nil {
		return err
	}
	sub := os.NewFile(uintptr(fd), base)
	defer sub.Close()
	names, _ := sub.Readdirnames(64)
	for _, name := range names {
		if strings.HasPrefix(name, stagePrefix) {
			return errBusy
		}
		if !strings.HasPrefix(name, partialPrefix) {
			return unix.ENOTEMPTY
		}
	}
	for _, name := range names {
		unix.Unlinkat(fd, name, 0)
	}
	return unix.Unlinkat(int(dir.Fd()), base, unix.AT_REMOVEDIR)
}

// rename moves from to to. An existing file at to is replaced in one step if
// replace allows it; a directory never is.
func (j *jail) rename(from, to string, replace bool) error {
	if from == to {
		_, err := j.lstat(from)
		return err
	}
	fd, fb, err := j.parent(from)
	if err != nil {
		return err
	}
	defer fd.Close()
	td, tb, err := j.parent(to)
	if err != nil {
		return err
	}
	defer td.Close()
	var st unix.Stat_t
	if err := unix.Fstatat(int(fd.Fd()), fb, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	isDir := st.Mode&unix.S_IFMT == unix.S_IFDIR
	if err := unix.Fstatat(int(td.Fd()), tb, &st, unix.AT_SYMLINK_NOFOLLOW); err == nil {
		if isDir || !replace || st.Mode&unix.S_IFMT == unix.S_IFDIR {
			return errExists
		}
	}
	flags := uint(0)
	if isDir || !replace {
		flags = unix.RENAME_NOREPLACE // rename(2) would replace an empty directory
	}
	err = renameat(int(fd.Fd()), fb, int(td.Fd()), tb, flags)
	if err == unix.EEXIST || err == unix.ENOTEMPTY {
		return errExists
	}
	if err == nil && !isDir {
		unix.Unlinkat(int(td.Fd()), partialName(tb), 0) // of the content that is gone now
	}
	return err
}

// renameat is renameat2(2), which some file systems (NFS and CephFS among
// them) and kernels before 3.15 refuse with flags.
func renameat(fd int, from string, td int, to string, flags uint) error {
	for {
		var err error
		if flags != 0 {
			err = unix.Renameat2(fd, from, td, to, flags)
			if err == unix.EINVAL || err == unix.ENOSYS {
				return renameNew(fd, from, td, to)
			}
		} else {
			err = unix.Renameat(fd, from, td, to)
		}
		if err != unix.EINTR {
			return err
		}
	}
}

// renameNew is RENAME_NOREPLACE for file systems without it: link(2) never
// replaces anything either. What cannot be linked (a directory, or any file
// where there are no hard links) has to do with a look before the rename.
func renameNew(fd int, from string, td int, to string) error {
	err := unix.Linkat(fd, from, td, to, 0)
	if err == nil {
		return unix.Unlinkat(fd, from, 0)
	}
	if err == unix.EEXIST || err == unix.ENOENT || err == unix.EXDEV {
		return err
	}
	var st unix.Stat_t
	if unix.Fstatat(td, to, &st, unix.AT_SYMLINK_NOFOLLOW) == nil {
		return unix.EEXIST
	}
	return unix.Renameat(fd, from, td, to)
}

// lstat tells about p itself, also where it is a link.
func (j *jail) lstat(p string) (entry, error) {
	var e entry
	t, rel := j.locate(p)
	if err := t.stat(rel, false, &e); err != nil {
		return e, err
	}
	e.name = path.Base(p)
	return e, nil
}

// readlink returns a link's target cut to what a listing can carry, "" if it
// cannot be told.
func readlink(dirfd int, name string) string {
	var buf [1024]byte
	n, err := unix.Readlinkat(dirfd, name, buf[:])
	if err != nil {
		return ""
	}
	return string(buf[:n])
}

// openMeta opens p for fchmod or futimens: the change then holds for the file
// that was looked at, whatever its name points to by then.
func (j *jail) openMeta(p string) (*os.File, error) {
	t, rel := j.locate(p)
	if !t.write {
		return nil, errReadOnly
	}
	f, err := t.open(rel, unix.O_RDONLY)
	if errors.Is(err, unix.EACCES) {
		f, err = t.open(rel, unix.O_WRONLY) // mode -w-: its owner may change it all the same
	}
	if errors.Is(err, unix.ENXIO) {
		err = errNotRegular // as in openFile
	}
	if err != nil {
		return nil, err
	}
	var e entry
	if err = fstat(f, &e); err == nil && !e.isDir() {
		err = e.mustBeFile()
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// chmod sets the permission bits of a file or directory; set-id and sticky
// bits are not a client's to give, and the root of a share not one user's to
// close to the others.
func (j *jail) chmod(p string, mode uint32) error {
	f, err := j.openMeta(p)
	if err != nil {
		return err
	}
	defer f.Close()
	if t, rel := j.locate(p); rel == "." && t != j.home {
		return errShareRoot
	}
	return unix.Fchmod(int(f.Fd()), mode&0o777)
}

// setTimes sets the modification time, and the access time to the same.
func (j *jail) setTimes(p string, mtime time.Time) error {
	f, err := j.openMeta(p)
	if err != nil {
		return err
	}
	defer f.Close()
	ts, err := unix.TimeToTimespec(mtime)
	if err != nil {
		return err
	}
	two := [2]unix.Timespec{ts, ts}
	// utimensat(2) with a null path works on the descriptor itself.
	if _, _, e := unix.Syscall6(unix.SYS_UTIMENSAT, f.Fd(), 0, uintptr(unsafe.Pointer(&two)), 0, 0, 0); e != 0 {
		return e
	}
	return nil
}

// free tells what statfs(2) says is left for this user's files, in bytes.
func (j *jail) free(p string) (int64, error) {
	t, rel := j.locate(p)
	f, err := t.open(rel, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		return 0, err
	}
	return int64(st.Bavail) * int64(st.Bsize), nil
}
