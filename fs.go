// fs.go owns everything that touches a user's files: the jail, the one
// function that cleans paths, the life of an upload from its staging file to
// its name, and directory streams.
//
// It knows no protocol: paths come in as the client wrote them, errors go out
// as Go errors, and proto.go turns them into reply codes. No function here
// takes a path to the kernel other than relative to a directory descriptor
// that the kernel itself keeps inside the jail.

package main

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// reservedPrefix begins the names that berth keeps for itself; clients can
	// neither see nor name them (contract section 5).
	reservedPrefix = ".berth-"
	stagePrefix    = reservedPrefix + "up-"   // an upload that is running
	partialPrefix  = reservedPrefix + "part-" // what arrived of an upload over an existing file

	// partialXattr marks a file that holds an interrupted upload under its own
	// name. A file system without user attributes loses the mark, which costs
	// a copy on resume and nothing else.
	partialXattr = "user.berth.partial"

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
	refs    atomic.Int64
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

	js.mu.Lock()
	defer js.mu.Unlock()
	if j := js.open[key]; j != nil {
		j.refs.Add(1)
		return j, nil
	}
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
	j.refs.Store(1)
	js.open[key] = j
	return j, nil
}

// leave gives back what enter gave; the last one closes the descriptors.
func (js *jailSet) leave(j *jail) {
	js.mu.Lock()
	defer js.mu.Unlock()
	if j.refs.Add(-1) == 0 {
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

// --- uploads ---

// uploadKind is which command began an upload.
type uploadKind int

const (
	uploadStore  uploadKind = iota // STOR: the whole content, or from an offset on
	uploadAppend                   // APPE: behind what is there
	uploadUnique                   // STOU: a name that nothing has
)

// An upload is one file on its way in. It lives in a staging file in the
// target's directory and takes the target's name by rename in commit; abort
// before that leaves the old file as it was. Exactly one of commit and
// interrupt must be called, by the goroutine that began it; both are final.
type upload struct {
	file    *os.File // the staging file, positioned where the next byte goes
	start   int64    // bytes that were there already
	size    int64    // bytes in the staging file
	dir     *os.File
	base    string // the target's name in dir
	stage   string // the staging file's name in dir
	old     entry  // what has the target's name now; zero mode: nothing
	resumed bool   // the staging file was a marked partial
	kind    uploadKind
	done    bool
}

// create begins an upload to p. offset is REST's; -1 for none. What may be
// continued and what not is contract section 5:
//
//   - a partial kept aside, or one under its own name, is continued when
//     offset is its size;
//   - a complete file keeps its first offset bytes;
//   - everything else is an *offsetError.
func (j *jail) create(p string, kind uploadKind, offset int64) (*upload, error) {
	dir, base, err := j.parent(p)
	if err != nil {
		if errors.Is(err, errShareRoot) {
			err = errIsDir
		}
		return nil, err
	}
	u := &upload{dir: dir, base: base, kind: kind}
	if err := u.begin(offset); err != nil {
		if u.file != nil {
			u.file.Close()
			unix.Unlinkat(int(dir.Fd()), u.stage, 0)
		}
		dir.Close()
		return nil, err
	}
	return u, nil
}

func (u *upload) begin(offset int64) error {
	d := int(u.dir.Fd())
	var st unix.Stat_t
	switch err := unix.Fstatat(d, u.base, &st, unix.AT_SYMLINK_NOFOLLOW); err {
	case nil:
		u.old.fromStat(&st)
		if u.old.mode&unix.S_IFMT == unix.S_IFLNK {
			// The link is replaced, not followed; but a link to a directory
			// looks like one to the client, and losing it would surprise.
			if unix.Fstatat(d, u.base, &st, 0) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR {
				return errIsDir
			}
		} else if err := u.old.mustBeFile(); err != nil {
			return err
		}
	case unix.ENOENT:
	default:
		return err
	}
	u.stage = stagePrefix + randomName()

	exists := u.old.mode&unix.S_IFMT == unix.S_IFREG
	if u.kind == uploadAppend {
		if exists {
			offset = u.old.size
		} else {
			offset = 0
		}
	}
	if offset <= 0 {
		return u.createStage()
	}

	// A restart. What can be continued is looked for in this order: a partial
	// kept aside, the file itself where it is a marked partial, a complete file.
	if u.kind == uploadStore {
		var part unix.Stat_t
		if unix.Fstatat(d, partialName(u.base), &part, unix.AT_SYMLINK_NOFOLLOW) == nil && part.Mode&unix.S_IFMT == unix.S_IFREG {
			if part.Size != offset {
				return &offsetError{have: part.Size, want: offset}
			}
			return u.adopt(partialName(u.base), offset)
		}
	}
	if !exists || offset > u.old.size {
		return &offsetError{have: u.old.size, want: offset}
	}
	if offset == u.old.size && u.isPartial() {
		return u.adopt(u.base, offset)
	}
	if err := u.createStage(); err != nil {
		return err
	}
	return u.copyPrefix(offset)
}

// createStage makes the staging file, with the mode of the file it will
// replace.
func (u *upload) createStage() error {
	fd, err := unix.Openat(int(u.dir.Fd()), u.stage, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o666)
	if err != nil {
		return err
	}
	u.file = os.NewFile(uintptr(fd), u.stage)
	if u.old.mode&unix.S_IFMT == unix.S_IFREG {
		return unix.Fchmod(fd, u.old.mode&0o777)
	}
	return nil
}

// isPartial tells whether the target is an interrupted upload under its own name.
func (u *upload) isPartial() bool {
	fd, err := unix.Openat(int(u.dir.Fd()), u.base, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	var b [1]byte
	_, err = unix.Fgetxattr(fd, partialXattr, b[:])
	return err == nil
}

// adopt takes a partial as the staging file. The rename makes it this upload's
// alone: a second session that resumes the same partial finds it gone.
func (u *upload) adopt(name string, offset int64) error {
	d := int(u.dir.Fd())
	if err := renameat(d, name, d, u.stage, unix.RENAME_NOREPLACE); err != nil {
		return err
	}
	fd, err := unix.Openat(d, u.stage, unix.O_RDWR|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err == nil {
		var size int64
		if size, err = unix.Seek(fd, 0, io.SeekEnd); err == nil && size != offset {
			err = &offsetError{have: size, want: offset} // it grew between the look and the rename
		}
		if err != nil {
			unix.Close(fd)
		}
	}
	if err != nil {
		renameat(d, u.stage, d, name, unix.RENAME_NOREPLACE)
		return err
	}
	u.file = os.NewFile(uintptr(fd), u.stage)
	u.start, u.size, u.resumed = offset, offset, true
	if name == u.base {
		u.old = entry{} // the name is free now, and an interruption gives it back
	}
	return nil
}

// copyPrefix brings the first n bytes of the old file into the staging file:
// by reflink where the file system can, else inside the kernel.
func (u *upload) copyPrefix(n int64) error {
	fd, err := unix.Openat(int(u.dir.Fd()), u.base, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	src := os.NewFile(uintptr(fd), u.base)
	defer src.Close()
	var e entry
	if err := fstat(src, &e); err != nil {
		return err
	}
	if err := e.mustBeFile(); err != nil {
		return err
	}
	got, err := u.file.ReadFrom(&io.LimitedReader{R: src, N: n}) // copy_file_range(2)
	if err != nil {
		return err
	}
	if got != n {
		return &offsetError{have: got, want: n}
	}
	u.start, u.size = n, n
	return nil
}

// wrote accounts for n bytes that were written behind the last ones.
func (u *upload) wrote(n int64) { u.size += n }

// commit gives the upload its name. When it returns nil the content and the
// name are there, and with durable also on stable storage: file first, then
// the rename, then the directory. On an error the old file is still there and
// the upload is gone or kept as interrupt keeps it.
func (u *upload) commit(durable bool) error {
	if u.resumed {
		unix.Fremovexattr(int(u.file.Fd()), partialXattr)
	}
	if durable {
		if err := unix.Fdatasync(int(u.file.Fd())); err != nil {
			u.discard()
			return fmt.Errorf("fdatasync: %w", err)
		}
	} else if u.old.isFile() {
		// ext4 begins writing a file out when it replaces another (ext4(5),
		// auto_da_alloc), and would do so with the directory locked.
		unix.SyncFileRange(int(u.file.Fd()), 0, 0, unix.SYNC_FILE_RANGE_WRITE)
	}
	d := int(u.dir.Fd())
	flags := uint(0)
	if u.kind == uploadUnique {
		flags = unix.RENAME_NOREPLACE
	}
	if err := renameat(d, u.stage, d, u.base, flags); err != nil {
		u.discard()
		return err
	}
	// An older try at the same name, and not only if a file has it now: one
	// left over from a file that was renamed away since could be spliced into
	// this content by a later restart.
	unix.Unlinkat(d, partialName(u.base), 0)
	var err error
	if durable {
		if err = unix.Fsync(d); err == unix.EBADF || err == unix.EINVAL {
			err = nil // a drop box opened with O_PATH, or a file system without directory sync
		}
	}
	u.end()
	return err
}

// interrupt ends an upload that did not finish. What arrived of a new name
// takes that name, marked as partial; over an existing file it is kept aside.
// Nothing is kept of an upload that brought no byte, nor of an APPE to a
// complete file, whose copy would only stand in the way of a restart; but what
// was a partial before is one afterwards, whatever the command.
func (u *upload) interrupt() {
	if u.done {
		return
	}
	if !u.resumed && (u.size == u.start || u.kind == uploadAppend && u.old.mode != 0) {
		u.discard()
		return
	}
	d := int(u.dir.Fd())
	unix.Fsetxattr(int(u.file.Fd()), partialXattr, []byte{'1'}, 0)
	err := renameat(d, u.stage, d, u.base, unix.RENAME_NOREPLACE)
	switch err {
	case nil:
		unix.Unlinkat(d, partialName(u.base), 0) // a restart must find this one
	case unix.EEXIST:
		err = renameat(d, u.stage, d, partialName(u.base), 0)
	}
	if err != nil {
		u.discard()
		return
	}
	u.end()
}

// discard ends an upload and leaves nothing of it.
func (u *upload) discard() {
	if u.done {
		return
	}
	unix.Unlinkat(int(u.dir.Fd()), u.stage, 0)
	u.end()
}

func (u *upload) end() {
	u.done = true
	u.file.Close()
	u.dir.Close()
}

// partialName is where what arrived of an upload over base is kept: of fixed
// length, so that a name of 255 bytes has a partial too.
func partialName(base string) string {
	h := sha256.Sum256([]byte(base))
	return partialPrefix + hex.EncodeToString(h[:12])
}

func randomName() string {
	var b [8]byte
	rand.Read(b[:]) // never fails: crypto/rand
	return hex.EncodeToString(b[:])
}

// unique finds a name for STOU in the directory of p that nothing has.
func (j *jail) unique(p string) (string, error) {
	for range 100 {
		try := p + "." + randomName()[:8]
		if _, err := j.lstat(try); errors.Is(err, fs.ErrNotExist) {
			return try, nil
		} else if err != nil {
			return "", err
		}
	}
	return "", errExists
}

// --- directories ---

// An entry is one name and what stat(2) says about it.
type entry struct {
	name     string
	link     string // where a symbolic link points
	mode     uint32 // st_mode: type and permissions
	uid, gid uint32
	nlink    uint64
	size     int64
	sec      int64 // mtime
	nsec     int64
	dev, ino uint64
}

func (e *entry) fromStat(st *unix.Stat_t) {
	e.mode, e.uid, e.gid = st.Mode, st.Uid, st.Gid
	e.nlink, e.size = uint64(st.Nlink), st.Size
	e.sec, e.nsec = int64(st.Mtim.Sec), int64(st.Mtim.Nsec)
	e.dev, e.ino = uint64(st.Dev), st.Ino
}

func (e *entry) isDir() bool      { return e.mode&unix.S_IFMT == unix.S_IFDIR }
func (e *entry) isFile() bool     { return e.mode&unix.S_IFMT == unix.S_IFREG }
func (e *entry) mtime() time.Time { return time.Unix(e.sec, e.nsec) }

// mustBeFile says why e cannot be read or replaced as a file.
func (e *entry) mustBeFile() error {
	switch {
	case e.isFile():
		return nil
	case e.isDir():
		return errIsDir
	}
	return errNotRegular
}

const (
	direntBuffer = 64 << 10 // getdents64(2): larger buffers measured no faster
	// sortBound is up to how many names a directory is listed in order. Beyond
	// it the order is the disk's: sorting needs all the names in memory before
	// the first can be sent.
	sortBound = 2048
)

// A dirStream reads a directory in constant memory: getdents64 into one
// pooled buffer, and fstatat by the directory's descriptor, so that no name is
// resolved twice and none can lead elsewhere.
type dirStream struct {
	dir    *os.File
	shares []entry // shown at the root of a home
	st     unix.Stat_t
}

var direntBuffers = sync.Pool{New: func() any { b := make([]byte, direntBuffer); return &b }}

// openDir opens the directory p for listing.
func (j *jail) openDir(p string) (*dirStream, error) {
	t, rel := j.locate(p)
	f, err := t.open(rel, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	d := &dirStream{dir: f}
	if p == "/" {
		for name, t := range j.shares {
			var e entry
			if fstat(t.dir, &e) == nil {
				e.name = name
				if !t.write {
					e.mode &^= 0o222
				}
				d.shares = append(d.shares, e)
			}
		}
		slices.SortFunc(d.shares, func(a, b entry) int { return strings.Compare(a.name, b.name) })
	}
	return d, nil
}

func (d *dirStream) close() { d.dir.Close() }

// self tells about the directory itself.
func (d *dirStream) self() (entry, error) {
	var e entry
	err := fstat(d.dir, &e)
	e.name = "."
	return e, err
}

// each calls fn for every entry but ".", ".." and reserved names, sorted by
// name where there are at most sortBound of them. With stat false only name
// is set. The entry and its strings hold only until fn returns. A name that
// vanishes meanwhile is left out.
func (d *dirStream) each(stat bool, fn func(*entry) error) error {
	bp := direntBuffers.Get().(*[]byte)
	defer direntBuffers.Put(bp)
	buf := *bp
	var e entry
	for i := range d.shares {
		if err := fn(&d.shares[i]); err != nil {
			return err
		}
	}
	emit := func(name []byte) error {
		e.name = unsafe.String(&name[0], len(name))
		if stat {
			if err := d.stat(&e); err != nil {
				if err == unix.ENOENT {
					return nil
				}
				return err
			}
		}
		return fn(&e)
	}
	var held [][]byte // names kept back for sorting
	sorting := true
	var arena []byte
	for {
		n, err := unix.Getdents(int(d.dir.Fd()), buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		if n == 0 {
			break
		}
		for rest := buf[:n]; len(rest) > 0; {
			// struct linux_dirent64: u64 ino, s64 off, u16 reclen, u8 type, name
			const nameAt = 19
			reclen := int(*(*uint16)(unsafe.Pointer(&rest[16])))
			rec := rest[:reclen]
			rest = rest[reclen:]
			name := rec[nameAt:]
			end := 0
			for end < len(name) && name[end] != 0 {
				end++
			}
			name = name[:end]
			if !d.shown(name) {
				continue
			}
			if !sorting {
				if err := emit(name); err != nil {
					return err
				}
				continue
			}
			arena = append(arena, name...)
			held = append(held, arena[len(arena)-len(name):])
			if len(held) > sortBound {
				sorting = false
				for _, name := range held {
					if err := emit(name); err != nil {
						return err
					}
				}
				held, arena = nil, nil
			}
		}
	}
	slices.SortFunc(held, func(a, b []byte) int { return strings.Compare(string(a), string(b)) })
	for _, name := range held {
		if err := emit(name); err != nil {
			return err
		}
	}
	return nil
}

// shown leaves out ".", "..", what berth reserves, and names that a share hides.
func (d *dirStream) shown(name []byte) bool {
	if len(name) == 0 || name[0] == '.' && (len(name) == 1 || len(name) == 2 && name[1] == '.') {
		return false
	}
	if name[0] == '.' && isReserved(unsafe.String(&name[0], len(name))) {
		return false
	}
	for i := range d.shares {
		if d.shares[i].name == string(name) {
			return false
		}
	}
	return true
}

// stat fills e for its name, without following a link.
func (d *dirStream) stat(e *entry) error {
	st := &d.st
	for {
		err := unix.Fstatat(int(d.dir.Fd()), e.name, st, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		break
	}
	e.fromStat(st)
	e.link = ""
	if e.mode&unix.S_IFMT == unix.S_IFLNK {
		e.link = readlink(int(d.dir.Fd()), e.name)
	}
	return nil
}

const (
	globSteps   = 100_000 // names and directories looked at in one expansion
	globDepth   = 16      // components with a wildcard
	globResults = 20_000  // names returned
	globBytes   = 8 << 20 // of them: a long path in front makes each one long
	globMatch   = 1 << 10 // bytes of pattern times bytes of name that one step may cost
)

// glob expands the wildcards of pattern (*, ?, [set]; a backslash takes the
// next byte literally) below cwd and returns the names as pattern spells them,
// sorted. The work is bounded: globSteps, globDepth, globResults and globBytes
// cut it short without an error, as the list would be useless anyway.
func (j *jail) glob(cwd, pattern string) ([]string, error) {
	if strings.Count(pattern, "/") > maxPath/2 || strings.ContainsAny(pattern, "\x00\r\n") {
		return nil, errBadName
	}
	var out []string
	steps, depth, held := 0, 0, 0
	var walk func(prefix, rest string) error
	walk = func(prefix, rest string) error {
		for strings.HasPrefix(rest, "/") {
			prefix, rest = prefix+"/", rest[1:]
		}
		if steps++; steps > globSteps || len(out) >= globResults || held > globBytes {
			return nil // without opening what would not be looked at
		}
		part, tail, more := strings.Cut(rest, "/")
		if !isGlob(part) {
			if !more {
				p, err := cleanPath(cwd, prefix+part)
				if err != nil {
					return nil
				}
				if _, err := j.lstat(p); err == nil {
					out = append(out, prefix+part)
					held += len(prefix) + len(part)
				}
				return nil
			}
			return walk(prefix+part+"/", tail)
		}
		if depth++; depth > globDepth {
			return nil
		}
		defer func() { depth-- }()
		dir, err := cleanPath(cwd, prefix)
		if err != nil {
			return nil
		}
		d, err := j.openDir(dir)
		if err != nil {
			return nil
		}
		var names []string
		set := globSets(part)
		err = d.each(false, func(e *entry) error {
			steps += 1 + len(set)*len(e.name)/globMatch
			if steps > globSteps || len(out)+len(names) >= globResults || held > globBytes {
				return io.EOF
			}
			if strings.HasPrefix(e.name, ".") && !strings.HasPrefix(part, ".") {
				return nil
			}
			ok, err := path.Match(set, e.name)
			if err != nil {
				return err
			}
			if ok {
				names = append(names, strings.Clone(e.name))
				held += len(prefix) + len(e.name)
			}
			return nil
		})
		d.close()
		if err != nil && err != io.EOF {
			return err
		}
		slices.Sort(names)
		for _, name := range names {
			if !more {
				out = append(out, prefix+name)
				continue
			}
			held -= len(prefix) + len(name)
			if steps > globSteps {
				continue
			}
			// Only a directory has anything below it, "." and ".." included.
			if p, err := cleanPath(cwd, prefix+name); err != nil || j.isDir(p) != nil {
				continue
			}
			if err := walk(prefix+name+"/", tail); err != nil {
				return err
			}
		}
		return nil
	}
	err := walk("", pattern)
	if errors.Is(err, path.ErrBadPattern) {
		err = nil // "[" alone: no such name, and no wildcard either
	}
	return out, err
}

// globSets turns the shells' "[!a-z]" into the "[^a-z]" of path.Match, which
// would else take it for a set of names with the very letters to be left out:
// BSD clients delete what NLST names.
func globSets(part string) string {
	if !strings.Contains(part, "[!") {
		return part
	}
	b := []byte(part)
	for i := 0; i+1 < len(b); i++ {
		if b[i] == '\\' {
			i++
		} else if b[i] == '[' && b[i+1] == '!' {
			b[i+1] = '^'
		}
	}
	return string(b)
}

// isGlob tells whether a name has a wildcard in it.
func isGlob(name string) bool { return strings.ContainsAny(name, "*?[") }

// uniqueFact is the "unique" fact of RFC 3659 section 7.5.2: the same for two
// names only if they are the same file.
func (e *entry) appendUnique(b []byte) []byte {
	b = strconv.AppendUint(b, e.dev, 16)
	b = append(b, 'g')
	return strconv.AppendUint(b, e.ino, 16)
}
