// fs.go is the jail: the one function that cleans paths, the trees that a user
// can reach, and what a name in them leads to. What becomes of names is in
// names.go, uploads are in upload.go, directories in dir.go.
//
// It knows no protocol: paths come in as the client wrote them, errors go out
// as Go errors, and proto.go turns them into reply codes. No function here
// takes a path to the kernel other than relative to a directory descriptor
// that the kernel itself keeps inside the jail.

package main

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"slices"
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
	errAcross     = errorf("a directory to another share: %w", unix.EXDEV)
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
	id      fileID
	openat2 bool
	write   bool

	// Whose quota counts what lies here, and how much that is. In a share outside
	// of all homes each file counts against who stored it, which its owner
	// attribute tells; balance is then that of the user who is here.
	balance *balance
	quota   quota
	byOwner bool
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
	t := &tree{root: root, dir: f, openat2: openat2, write: write}
	var e entry
	if err := fstat(f, &e); err != nil {
		t.close()
		return nil, err
	}
	t.id = e.id()
	return t, nil
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

// openAlways is for every file of a home. Without O_LARGEFILE, which os.Root leaves out
// and openat2(2) does not add on a kernel of 32 bits, a file of 2 GiB or more does not
// open there (EOVERFLOW); where all is 64 bits it is 0.
const openAlways = unix.O_NOCTTY | unix.O_NONBLOCK | unix.O_LARGEFILE

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
		f, err := t.root.OpenFile(rel, flags|openAlways, 0)
		return f, escapes(err)
	}
	// openat2 allows few flags with O_PATH, and a directory needs no others.
	if flags |= unix.O_CLOEXEC; flags&(unix.O_PATH|unix.O_DIRECTORY) == 0 {
		flags |= openAlways
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
	set     *jailSet
	balance *balance // nil: nothing is counted
	rotate  bool     // full means that the oldest files go
}

// jailOwner is whose name listings show for files that the daemon owns.
type jailOwner struct {
	name string
	uid  uint32
}

// jailKey tells one jail from another: the user's name, where his trees are and
// what he may store, so that a changed users.d file leads to a new jail at the
// next login.
type jailKey struct {
	user, trees string
	id          fileID // of the home
	quota       quota
	counted     bool
	rotate      bool
}

// jailSpec is what a jail is made from.
type jailSpec struct {
	user, home string
	shares     map[string]shareSpec
	quota      quota
	uncounted  bool // quota = "filesystem": the kernel counts
	rotate     bool // when_full = "rotate"
}

// A jailSet keeps one jail a user open as long as he has a session: ten
// thousand sessions of one camera cost two descriptors, not twenty thousand.
//
// It also has what changes of names agree on across jails, which may overlap:
// two users can have one home, and a share shows in many.
type jailSet struct {
	mu      mutex
	open    map[jailKey]*jail
	openat2 bool

	syncs    syncGroups
	ledger   *ledger // nil: nothing is counted
	partials *partialSet
	boot     string // of this run of the machine, in the names of staging files
	// makeRoom removes old files of a user whose home is full, until his quota has
	// room for that much more; nil: nobody does.
	makeRoom func(j *jail, bytes, files int64) error
	// recount counts anew what b is about, if that was not done of late, and
	// tells whether it has; nil: nobody does.
	recount func(j *jail, b *balance) bool
	// attend is told that a user's home wants a sweep by some time; nil: nobody.
	attend func(user string, at time.Time)
	logger *slog.Logger // nil: none
	// stopping is closed when nothing is to be waited for any more; nil: never.
	stopping <-chan struct{}

	// In shares a change can be at the expense of somebody else than who makes it:
	// changes that are going on there, and moves of whole directories so far.
	shareBusy   atomic.Int32
	shareShaken atomic.Int64

	staged atomic.Int64 // bytes in the staging files of running uploads

	seed  maphash.Seed
	names [nameLocks]mutex // by name: held from the look at it to the change

	useMu  mutex
	inUse  map[fileID]int      // files that are being read or replaced: never rotated away
	claims map[fileID]bool     // of these, whose room is promised to the upload that replaces it
	live   map[string]struct{} // staging files of this process
}

// nameLocks is into how many locks names fall. Two that share one wait for each
// other's rename or unlink, and for nothing longer.
const nameLocks = 64

func newJailSet(l *ledger) *jailSet {
	partials := newPartialSet()
	if l != nil {
		partials = l.partials
	}
	return &jailSet{partials: partials, open: map[jailKey]*jail{}, openat2: haveOpenat2(), ledger: l, boot: bootID(),
		seed: maphash.MakeSeed(), inUse: map[fileID]int{}, claims: map[fileID]bool{}, live: map[string]struct{}{}}
}

func (js *jailSet) log() *slog.Logger {
	if js.logger == nil {
		return slog.New(slog.DiscardHandler)
	}
	return js.logger
}

// shareSpec is a directory from outside the home that shows as /NAME.
type shareSpec struct {
	path  string
	write bool
	// inHome is the user in whose home the share lies, and quota is his: there it
	// counts as everything does. "" if it lies in nobody's.
	inHome string
	quota  quota
}

// enter opens the user's jail, or joins the one his other sessions have. A
// home that does not exist is made (mode 0700); a home that was replaced by
// another directory meanwhile is seen by inode and opened anew. Every enter
// needs one leave.
func (js *jailSet) enter(spec jailSpec) (*jail, error) {
	home, shares := spec.home, spec.shares
	var st unix.Stat_t
	fresh := false
	err := unix.Stat(home, &st)
	if err == unix.ENOENT {
		if err := os.MkdirAll(filepath.Dir(home), 0o700); err != nil {
			return nil, errorf("make home: %w", err)
		}
		if err = unix.Mkdir(home, 0o700); err != nil && err != unix.EEXIST {
			return nil, errorf("make home %q: %w", home, err)
		}
		fresh = err == nil // and not by another session that came at the same time
		err = unix.Stat(home, &st)
	}
	if err != nil {
		return nil, errorf("home %q: %w", home, err)
	}
	key := jailKey{user: spec.user, trees: home, id: fileID{uint64(st.Dev), st.Ino}, quota: spec.quota, counted: !spec.uncounted, rotate: spec.rotate}
	if len(shares) > 0 {
		var b builder
		b.WriteString(home)
		names := make([]string, 0, len(shares))
		for name := range shares {
			names = append(names, name)
		}
		slices.Sort(names)
		for _, name := range names {
			fmt.Fprintf(&b, "\x00%s\x00%v", name, shares[name])
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
		return nil, errorf("home: %w", err)
	}
	if fresh {
		js.partials.know(spec.user, "")
	}
	j := &jail{home: t, key: key, set: js, rotate: spec.rotate, owner: jailOwner{name: spec.user, uid: uint32(os.Geteuid())}}
	if js.ledger != nil && key.counted {
		if err := js.ledger.hold(int(t.dir.Fd()), t.id, home); err != nil {
			t.close()
			return nil, err
		}
		j.balance = js.ledger.open(spec.user, home, t.id, birth(t.dir), fresh)
		t.balance, t.quota = j.balance, spec.quota
	}
	for name, s := range shares {
		t, err := openTree(s.path, s.write, js.openat2)
		if err != nil {
			// A disk that is not plugged in must not keep its users out.
			j.missing = append(j.missing, errorf("share %q: %w", name, err))
			continue
		}
		if t.balance, t.quota, t.byOwner = j.balance, spec.quota, true; s.inHome != "" {
			t.balance, t.quota, t.byOwner = js.ledger.user(s.inHome), s.quota, false
		}
		if j.shares == nil {
			j.shares = map[string]*tree{}
		}
		j.shares[name] = t
	}
	j = js.join(key, j)
	if _, _, known := j.balance.usage(); j.balance != nil && !known && js.attend != nil {
		js.attend(spec.user, time.Now())
	}
	return j, nil
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
		defer mine.close()
	}
	j.refs++
	return j
}

// leave gives back what enter gave; the last one closes the descriptors.
func (js *jailSet) leave(j *jail) {
	js.mu.Lock()
	j.refs--
	last := j.refs == 0
	if last {
		delete(js.open, j.key)
	}
	js.mu.Unlock()
	if last {
		j.close() // without the lock: it may be on a dead network disk
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

// A parentDir is an open directory in which an entry is changed.
type parentDir struct {
	*os.File
	t    *tree
	id   fileID
	lent bool // the tree's own descriptor, which stays open
}

func (d parentDir) close() {
	if !d.lent {
		d.Close()
	}
}

// name is base as it is locked.
func (d parentDir) name(base string) nameIn { return nameIn{d.id, base, d.t.balance, d.t.byOwner} }

// parent opens the directory that holds p for changing an entry of it. The
// roots of home and shares have no parent that a client may change.
func (j *jail) parent(p string) (dir parentDir, base string, err error) {
	t, rel := j.locate(p)
	if rel == "." {
		return dir, "", errShareRoot
	}
	if !t.write {
		return dir, "", errReadOnly
	}
	d, base := path.Split(rel)
	if d == "" {
		return parentDir{t.dir, t, t.id, true}, base, nil
	}
	d = d[:len(d)-1]
	f, err := t.open(d, unix.O_RDONLY|unix.O_DIRECTORY)
	if errors.Is(err, unix.EACCES) {
		// A drop box (mode -wx) can be written without being read.
		f, err = t.open(d, unix.O_PATH|unix.O_DIRECTORY)
	}
	if err != nil {
		return dir, "", err
	}
	dir, err = t.ownDir(f)
	return dir, base, err
}

// ownDir makes a parentDir of f, which is closed with it.
func (t *tree) ownDir(f *os.File) (parentDir, error) {
	var e entry
	if err := fstat(f, &e); err != nil {
		f.Close()
		return parentDir{}, err
	}
	return parentDir{f, t, e.id(), false}, nil
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
	e.name = baseName(p)
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
	e.name = baseName(p)
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

// openDeep opens a directory however long its path is: clients can nest
// directories deeper than one path reaches.
func (t *tree) openDeep(rel string) (*os.File, error) {
	const step = 2000 // bytes, below PATH_MAX with a name of any length behind
	if len(rel) < step {
		return t.open(rel, unix.O_RDONLY|unix.O_DIRECTORY)
	}
	var dir *os.File
	for rel != "" {
		part := rel
		if rel = ""; len(part) > step {
			if i := strings.LastIndexByte(part[:step], '/'); i > 0 {
				part, rel = part[:i], part[i+1:]
			}
		}
		var next *os.File
		var err error
		if dir == nil {
			next, err = t.open(part, unix.O_RDONLY|unix.O_DIRECTORY)
		} else {
			next, err = openBelow(dir, part)
			dir.Close()
		}
		if err != nil {
			return nil, err
		}
		dir = next
	}
	return dir, nil
}

// deepParent opens the directory that holds rel.
func (t *tree) deepParent(rel string) (parentDir, error) {
	f, err := t.openDeep(path.Dir(rel))
	if err != nil {
		return parentDir{}, err
	}
	return t.ownDir(f)
}

// openBelow opens a directory below another one, following no link, name by
// name: that works with and without openat2(2).
func openBelow(dir *os.File, rel string) (*os.File, error) {
	at, fd := int(dir.Fd()), -1
	for name := range strings.SplitSeq(rel, "/") {
		next, err := unix.Openat(at, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if fd >= 0 {
			unix.Close(fd)
		}
		if err != nil {
			return nil, err
		}
		at, fd = next, next
	}
	return os.NewFile(uintptr(fd), rel), nil
}

// lstat tells about p itself, also where it is a link.
func (j *jail) lstat(p string) (entry, error) {
	var e entry
	t, rel := j.locate(p)
	if err := t.stat(rel, false, &e); err != nil {
		return e, err
	}
	e.name = baseName(p)
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
	t, rel := j.locate(p)
	if rel == "." && t != j.home {
		return errShareRoot
	}
	if t != j.home {
		mode |= 0o400 // or berth could not tell any more whose quota it counts against
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
	var e entry
	if fstat(f, &e) == nil && e.isFile() {
		if sum := keptDigest(int(f.Fd()), &e); sum != nil {
			defer func() {
				if fstat(f, &e) == nil {
					keepDigest(int(f.Fd()), &e, sum) // the content is the same
				}
			}()
		}
	}
	return utimens(f, ts)
}

// utimens sets both times of an open file.
func utimens(f *os.File, ts unix.Timespec) error {
	two := [2]unix.Timespec{ts, ts}
	// utimensat(2) with a null path works on the descriptor itself.
	if _, _, e := unix.Syscall6(unix.SYS_UTIMENSAT, f.Fd(), 0, uintptr(unsafe.Pointer(&two)), 0, 0, 0); e != 0 {
		return e
	}
	return nil
}

// left is how many bytes the user may still store by his quota; without one,
// limited is false.
func (j *jail) left() (n int64, limited bool) { return j.balance.left(j.key.quota) }

// isTop tells whether p is the top of the home or of a share, which nobody can
// remove.
func (j *jail) isTop(p string) bool {
	_, rel := j.locate(p)
	return rel == "."
}

// diskPath is where the operator finds p, if no link leads elsewhere.
func (j *jail) diskPath(p string) string {
	t, rel := j.locate(p)
	return filepath.Join(t.root.Name(), rel)
}

// mayMark tells whether attributes may be set on p: not in a read-only share,
// whose files are somebody else's.
func (j *jail) mayMark(p string) bool {
	t, _ := j.locate(p)
	return t.write
}

// sameContent tells whether two looks at a file saw no write in between.
func (e *entry) sameContent(f *entry) bool {
	return e.id() == f.id() && e.size == f.size && e.sec == f.sec && e.nsec == f.nsec
}

// digestXattr keeps the SHA-256 of a file's content, with what stat(2) said of
// it then: "SIZE SECONDS.NANOSECONDS INODE HEX".
const digestXattr = "user.berth.sha256"

// keepDigest notes on the open file fd, which e tells of, that sum is the
// SHA-256 of its content. A file system without user attributes keeps nothing.
func keepDigest(fd int, e *entry, sum []byte) {
	unix.Fsetxattr(fd, digestXattr, fmt.Appendf(nil, "%d %d.%09d %d %x", e.size, e.sec, e.nsec, e.ino, sum), 0)
}

// keptDigest is the SHA-256 that keepDigest noted, or nil if there is none or
// the file has changed since.
func keptDigest(fd int, e *entry) []byte {
	var buf [256]byte
	n, err := unix.Fgetxattr(fd, digestXattr, buf[:])
	if err != nil {
		return nil
	}
	digits, ok := cutPrefix(string(buf[:n]), fmt.Sprintf("%d %d.%09d %d ", e.size, e.sec, e.nsec, e.ino))
	sum, err := hex.DecodeString(digits)
	if !ok || err != nil || len(sum) != sha256.Size {
		return nil
	}
	return sum
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
