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
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
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
	errAcross     = fmt.Errorf("a directory to another share: %w", unix.EXDEV)
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
	mu      sync.Mutex
	open    map[jailKey]*jail
	openat2 bool

	syncs  syncGroups
	ledger *ledger // nil: nothing is counted
	boot   string  // of this run of the machine, in the names of staging files
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

	seed  maphash.Seed
	names [nameLocks]sync.Mutex // by name: held from the look at it to the change

	useMu  sync.Mutex
	inUse  map[fileID]int      // files that are being read or replaced: never rotated away
	claims map[fileID]bool     // of these, whose room is promised to the upload that replaces it
	live   map[string]struct{} // staging files of this process
}

// nameLocks is into how many locks names fall. Two that share one wait for each
// other's rename or unlink, and for nothing longer.
const nameLocks = 64

func newJailSet(l *ledger) *jailSet {
	return &jailSet{open: map[jailKey]*jail{}, openat2: haveOpenat2(), ledger: l, boot: bootID(),
		seed: maphash.MakeSeed(), inUse: map[fileID]int{}, claims: map[fileID]bool{}, live: map[string]struct{}{}}
}

func (js *jailSet) log() *slog.Logger {
	if js.logger == nil {
		return slog.New(slog.DiscardHandler)
	}
	return js.logger
}

// lockNames takes the locks of names, in one order everywhere, and
// returns what gives them back. A name and the partial kept aside for it have
// the same lock, by whatever path a client comes to their directory.
func (js *jailSet) lockNames(names ...nameIn) (unlock func()) {
	var which [2]int
	n := 0
	for _, name := range names {
		i := int(js.nameHash(name) % nameLocks)
		if n == 1 && which[0] == i {
			continue
		}
		which[n] = i
		n++
	}
	if n == 2 && which[0] > which[1] {
		which[0], which[1] = which[1], which[0]
	}
	shared := int32(0)
	for _, name := range names {
		name.balance.begin()
		if name.shared {
			shared = 1
		}
	}
	js.shareBusy.Add(shared)
	for _, i := range which[:n] {
		js.names[i].Lock()
	}
	return func() {
		for _, i := range which[:n] {
			js.names[i].Unlock()
		}
		js.shareBusy.Add(-shared)
		for _, name := range names {
			name.balance.end()
		}
	}
}

func (js *jailSet) nameHash(n nameIn) uint64 {
	if !strings.HasPrefix(n.base, partialPrefix) {
		n.base = partialName(n.base)
	}
	return maphash.Comparable(js.seed, nameIn{dir: n.dir, base: n.base})
}

// nameIn is a name in a directory.
type nameIn struct {
	dir     fileID
	base    string
	balance *balance // which is told that the name is about to change
	shared  bool     // others than its owner can have something there
}

// use keeps a file from being rotated away until the function it returns is
// called.
func (js *jailSet) use(id fileID) (done func()) {
	js.useMu.Lock()
	defer js.useMu.Unlock()
	js.inUse[id]++
	return func() {
		js.useMu.Lock()
		defer js.useMu.Unlock()
		if js.inUse[id]--; js.inUse[id] == 0 {
			delete(js.inUse, id)
		}
	}
}

// claim promises the room of a file to one upload that is to replace it. A second
// one at the same time gets none: both cannot have it.
func (js *jailSet) claim(id fileID) bool {
	js.useMu.Lock()
	defer js.useMu.Unlock()
	if js.claims[id] {
		return false
	}
	js.claims[id] = true
	return true
}

func (js *jailSet) unclaim(id fileID) {
	js.useMu.Lock()
	defer js.useMu.Unlock()
	delete(js.claims, id)
}

// staging notes a staging file of this process, and that it is none any more.
func (js *jailSet) staging(name string, is bool) {
	js.useMu.Lock()
	defer js.useMu.Unlock()
	if is {
		js.live[name] = struct{}{}
	} else {
		delete(js.live, name)
	}
}

func (js *jailSet) isLive(name string) bool {
	js.useMu.Lock()
	defer js.useMu.Unlock()
	_, is := js.live[name]
	return is
}

func (js *jailSet) used(id fileID) bool {
	js.useMu.Lock()
	defer js.useMu.Unlock()
	return js.inUse[id] > 0
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
			return nil, fmt.Errorf("make home: %w", err)
		}
		if err = unix.Mkdir(home, 0o700); err != nil && err != unix.EEXIST {
			return nil, fmt.Errorf("make home %q: %w", home, err)
		}
		fresh = err == nil // and not by another session that came at the same time
		err = unix.Stat(home, &st)
	}
	if err != nil {
		return nil, fmt.Errorf("home %q: %w", home, err)
	}
	key := jailKey{user: spec.user, trees: home, id: fileID{uint64(st.Dev), st.Ino}, quota: spec.quota, counted: !spec.uncounted, rotate: spec.rotate}
	if len(shares) > 0 {
		var b strings.Builder
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
		return nil, fmt.Errorf("home: %w", err)
	}
	j := &jail{home: t, key: key, set: js, rotate: spec.rotate, owner: jailOwner{name: spec.user, uid: uint32(os.Geteuid())}}
	if js.ledger != nil && key.counted {
		j.balance = js.ledger.open(spec.user, home, t.id, birth(t.dir), fresh)
		t.balance, t.quota = j.balance, spec.quota
	}
	for name, s := range shares {
		t, err := openTree(s.path, s.write, js.openat2)
		if err != nil {
			// A disk that is not plugged in must not keep its users out.
			j.missing = append(j.missing, fmt.Errorf("share %q: %w", name, err))
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

// removeFound removes a file that a sweep has seen, unless it has changed since
// or is being read or replaced; of complete ones only, if complete is set.
func (j *jail) removeFound(f *found, complete bool) error {
	dir, err := f.t.deepParent(f.rel)
	if err != nil {
		return err
	}
	defer dir.close()
	base := path.Base(f.rel)
	defer j.set.lockNames(dir.name(base))()
	now, ok, err := j.look(f.t, int(dir.Fd()), base)
	if err != nil {
		return err
	}
	if !ok || !f.same(&now.entry) || j.set.used(f.id) || complete && isPartial(int(dir.Fd()), base) {
		return errBusy
	}
	return j.unlink(f.t, int(dir.Fd()), base)
}

// lockless is how long a staging file may lie still where the disk has no
// flock(2) that could tell whether another berth is at it.
const lockless = time.Hour

// recoverStage ends, in its place, an upload that a crash has cut off: by the
// rules of an interruption if this is still the same run of the machine; else
// nobody knows how much of the file the disk really has, and it is removed.
// since is when this berth began: what was created after that is an upload that
// is about to take its lock. result tells what was done; "" is nothing, because
// the upload is running.
func (j *jail) recoverStage(f *found, since time.Time) (result string, err error) {
	boot, kind, base, ok := parseStage(path.Base(f.rel))
	if !ok {
		return "", fmt.Errorf("%q is not a name that berth gives", f.rel)
	}
	dir, err := f.t.deepParent(f.rel)
	if err != nil {
		return "", err
	}
	stage := path.Base(f.rel)
	fd, err := unix.Openat(int(dir.Fd()), stage, unix.O_RDWR|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		dir.close()
		if err == unix.ENOENT {
			err = nil
		}
		return "", err
	}
	u := &upload{jail: j, tree: f.t, dir: dir, base: base, name: dir.name(base), kind: kind, resumed: kind == uploadResumed,
		file: os.NewFile(uintptr(fd), stage), start: -1, durable: true, balance: f.t.balance}
	if f.t.byOwner {
		u.balance = j.ownerOf(fd)
	}
	var now, named entry
	lerr := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
	leave := lerr == unix.EWOULDBLOCK || j.set.isLive(stage) || fstat(u.file, &now) != nil ||
		lerr != nil && time.Since(now.mtime()) < lockless // a disk that has no locks
	if !leave {
		var st unix.Stat_t
		if leave = unix.Fstatat(int(dir.Fd()), stage, &st, unix.AT_SYMLINK_NOFOLLOW) != nil; !leave {
			named.fromStat(&st)
			leave = named.id() != now.id() || // committed meanwhile
				f.t.byOwner && u.balance != nil && u.balance != j.balance || // another user's, whose sweep does it
				now.size == 0 && !now.mtime().Before(since)
		}
	}
	u.size = now.size
	switch {
	case leave:
		u.end()
		return "", nil
	case base != "" && named.nlink > 1 && j.sameFile(dir, base, now.id()):
		// Without RENAME_NOREPLACE a name is given by link(2) first.
		result = "finished"
	case base == "" || kind == uploadCopied || now.size == 0:
		result = "removed"
	case boot != j.set.boot:
		result = "removed: the machine has restarted since"
	default:
		result = "kept as a partial"
	}
	u.stage = stage
	if result == "finished" {
		u.discard()
		return result, nil
	}
	if u.balance != nil {
		u.charged = quota{now.size, 1}
		u.balance.take(now.size, 1) // a sweep does not count staging files
	}
	if result == "kept as a partial" && !u.fit() {
		result = "removed: over quota"
	}
	if result == "kept as a partial" {
		u.interrupt()
	} else {
		u.discard()
	}
	return result, nil
}

func (j *jail) sameFile(dir parentDir, base string, id fileID) bool {
	var st unix.Stat_t
	return unix.Fstatat(int(dir.Fd()), base, &st, unix.AT_SYMLINK_NOFOLLOW) == nil && fileID{uint64(st.Dev), st.Ino} == id
}

// --- what changes names, and the ledger with them ---

// shareOwnerXattr names the user that a file in a share was stored by, and whose
// quota it counts against. In a home everything is its user's.
const shareOwnerXattr = "user.berth.owner"

// birth is when a file was made, in Unix nanoseconds; 0 if its disk cannot tell.
func birth(f *os.File) int64 {
	var st unix.Statx_t
	if unix.Statx(int(f.Fd()), "", unix.AT_EMPTY_PATH, unix.STATX_BTIME, &st) != nil || st.Mask&unix.STATX_BTIME == 0 {
		return 0
	}
	return st.Btime.Sec*1e9 + int64(st.Btime.Nsec)
}

// balanceOf is whose quota the name in dir counts against; nil: nobody's, as
// for what was put into a share by other means.
func (j *jail) balanceOf(t *tree, dir int, base string) *balance {
	if !t.byOwner {
		return t.balance
	}
	fd, err := unix.Openat(dir, base, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	defer unix.Close(fd)
	return j.ownerOf(fd)
}

// ownerOf is balanceOf for an open file of a share.
func (j *jail) ownerOf(fd int) *balance {
	var name [64]byte // user names have at most 32
	n, err := unix.Fgetxattr(fd, shareOwnerXattr, name[:])
	if err != nil {
		return nil
	}
	if j.balance != nil && string(name[:n]) == j.key.user {
		return j.balance
	}
	return j.set.ledger.user(string(name[:n]))
}

// own makes what is open as fd this user's, where that has to be said, and
// returns whose quota it counts against then: nobody's in a share whose disk
// cannot keep the owner.
func (j *jail) own(t *tree, fd int) *balance {
	switch {
	case !t.byOwner:
		return t.balance
	case j.balance == nil:
		unix.Fremovexattr(fd, shareOwnerXattr)
		return nil
	case unix.Fsetxattr(fd, shareOwnerXattr, []byte(j.key.user), 0) != nil:
		return nil
	}
	return j.balance
}

// ownName is own for a name in dir.
func (j *jail) ownName(t *tree, dir int, base string) *balance {
	if !t.byOwner {
		return t.balance
	}
	fd, err := unix.Openat(dir, base, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	defer unix.Close(fd)
	return j.own(t, fd)
}

// stored is what a name in dir takes of whose quota.
type stored struct {
	entry
	balance *balance
}

// counted is what an entry counts for: the size of a regular file, nothing else.
func (e *entry) counted() int64 {
	if e.isFile() {
		return e.size
	}
	return 0
}

// look tells what has a name now; ok is false if nothing has. Its answer holds
// as long as the name's lock is held, against all but the operator.
func (j *jail) look(t *tree, dir int, base string) (s stored, ok bool, err error) {
	var st unix.Stat_t
	switch err := unix.Fstatat(dir, base, &st, unix.AT_SYMLINK_NOFOLLOW); err {
	case nil:
	case unix.ENOENT:
		return s, false, nil
	default:
		return s, false, err
	}
	s.fromStat(&st)
	s.balance = j.balanceOf(t, dir, base)
	return s, true, nil
}

// gone gives back what a name took that no longer exists. An inode with more
// names is still somebody's, but each name counted by itself.
func (s *stored) gone() { s.balance.drop(s.counted(), 1) }

// liftPartial takes what is kept aside of uploads to base out of the way, before
// base changes: a crash in between must not leave it beside other content. ended
// removes it, or puts it back if the change did not come about. The name's lock
// must be held.
func (j *jail) liftPartial(t *tree, dir int, base string) (ended func(changed bool)) {
	part := partialName(base)
	s, ok, _ := j.look(t, dir, part)
	if !ok {
		return func(bool) {}
	}
	away := j.set.stageName(uploadCopied, "") // what recovery removes
	j.set.staging(away, true)
	s.balance.shift(s.counted()) // a count that comes by does not see it for a moment
	if unix.Renameat(dir, part, dir, away) != nil {
		j.set.staging(away, false)
		if unix.Unlinkat(dir, part, 0) == nil { // then it cannot come back
			s.gone()
		}
		return func(bool) {}
	}
	return func(changed bool) {
		if !changed {
			unix.Renameat(dir, away, dir, part)
			s.balance.shift(s.counted())
		} else if unix.Unlinkat(dir, away, 0) == nil {
			s.gone()
		}
		j.set.staging(away, false)
	}
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
	defer dir.close()
	var st unix.Stat_t
	if unix.Fstatat(int(dir.Fd()), base, &st, unix.AT_SYMLINK_NOFOLLOW) == nil {
		return errExists // rather than "over quota"
	}
	t := dir.t
	if err := j.reserve(t, 0, 1); err != nil {
		return err
	}
	defer j.set.lockNames(dir.name(base))()
	if err := unix.Mkdirat(int(dir.Fd()), base, 0o777); err != nil {
		t.balance.unreserve(0, 1)
		if err == unix.EEXIST {
			return errExists
		}
		return err
	}
	if j.ownName(t, int(dir.Fd()), base) == t.balance {
		t.balance.land(quota{0, 1}, quota{0, 1}, quota{})
	} else {
		t.balance.unreserve(0, 1)
	}
	return nil
}

// countingWait is how long a client is kept waiting for the first count of his
// home, before it hears that he has to come again.
const countingWait = 10 * time.Second

// reserve takes room for bytes and files in t from the quota that holds there,
// and makes it where when_full says so. Before it refuses, what is stored is
// counted anew, if that was not done of late: something else may have removed
// files. It must not be called with a name's lock held.
func (j *jail) reserve(t *tree, bytes, files int64) error {
	recounted := false
	for {
		err := t.balance.reserve(t.quota, bytes, files)
		if err == nil {
			return nil
		}
		if errors.Is(err, errCounting) {
			if err = t.balance.wait(countingWait, j.set.stopping); err != nil {
				return err
			}
			continue
		}
		if j.rotate && t == j.home && j.set.makeRoom != nil && j.set.makeRoom(j, bytes, files) == nil {
			continue
		}
		if recounted || j.set.recount == nil || !j.set.recount(j, t.balance) {
			return err
		}
		recounted = true
	}
}

// ensure is reserve without taking anything: it tells whether there is room, and
// makes it.
func (j *jail) ensure(t *tree, bytes, files int64) error {
	if _, _, known := t.balance.usage(); t.balance == nil || known && t.balance.has(t.quota, bytes, files) {
		return nil
	}
	err := j.reserve(t, bytes, files)
	if err == nil {
		t.balance.unreserve(bytes, files)
	}
	return err
}

// remove deletes a file, a link or a special file, not a directory, and what
// is left of an interrupted upload over it.
func (j *jail) remove(p string) error {
	dir, base, err := j.parent(p)
	if err != nil {
		return err
	}
	defer dir.close()
	t, _ := j.locate(p)
	defer j.set.lockNames(dir.name(base))()
	return j.unlink(t, int(dir.Fd()), base)
}

// unlink needs the name's lock.
func (j *jail) unlink(t *tree, dir int, base string) error {
	old, ok, err := j.look(t, dir, base)
	if err != nil {
		return err
	}
	if !ok {
		return unix.ENOENT
	}
	ended := j.liftPartial(t, dir, base)
	err = unix.Unlinkat(dir, base, 0)
	ended(err == nil)
	if err == nil {
		old.gone()
	}
	return err
}

// rmdir removes an empty directory. Partials that only the server sees do not
// keep a directory alive that its user sees as empty; a running upload does.
func (j *jail) rmdir(p string) error {
	dir, base, err := j.parent(p)
	if err != nil {
		return err
	}
	defer dir.close()
	t, _ := j.locate(p)
	defer j.set.lockNames(dir.name(base))()
	old, ok, err := j.look(t, int(dir.Fd()), base)
	if err != nil {
		return err
	}
	if !ok {
		return unix.ENOENT
	}
	err = unix.Unlinkat(int(dir.Fd()), base, unix.AT_REMOVEDIR)
	if err == unix.ENOTEMPTY || err == unix.EEXIST {
		err = j.emptyDir(t, int(dir.Fd()), base, dir.name(base))
		if err == nil {
			err = unix.Unlinkat(int(dir.Fd()), base, unix.AT_REMOVEDIR)
		}
	}
	if err == nil {
		old.gone()
	}
	return err
}

// emptyDir removes partials from a directory that holds nothing else.
// dirName is the directory's own name, whose lock is held.
func (j *jail) emptyDir(t *tree, dir int, base string, dirName nameIn) error {
	// O_NOFOLLOW, and only reserved names are touched: a directory swapped for
	// a link meanwhile cannot make this delete anything a client can name.
	fd, err := unix.Openat(dir, base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return unix.ENOTEMPTY
	}
	sub := os.NewFile(uintptr(fd), base)
	defer sub.Close()
	id, err := t.ownDir(sub)
	if err != nil {
		return err
	}
	var parts []string
	for {
		names, err := sub.Readdirnames(1000)
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		for _, name := range names {
			if strings.HasPrefix(name, stagePrefix) {
				return errBusy
			}
			if !strings.HasPrefix(name, partialPrefix) {
				return unix.ENOTEMPTY
			}
		}
		parts = append(parts, names...)
	}
	for _, name := range parts {
		// Not waited for, as the directory's own lock is held: an upload that is
		// about to take the partial up makes the directory busy anyway.
		l := &j.set.names[j.set.nameHash(id.name(name))%nameLocks]
		if mine := j.set.nameHash(dirName)%nameLocks == j.set.nameHash(id.name(name))%nameLocks; !mine {
			if !l.TryLock() {
				return errBusy
			}
			defer l.Unlock()
		}
		if s, ok, _ := j.look(t, fd, name); ok && unix.Unlinkat(fd, name, 0) == nil {
			s.gone()
		}
	}
	return nil
}

// rename moves from to to. An existing file at to is replaced in one step if
// replace allows it; a directory never is. Between a home and a share, or two
// shares, only files go: whose quota a whole tree counts against cannot be
// changed in one step.
func (j *jail) rename(from, to string, replace bool) error {
	if from == to {
		_, err := j.lstat(from)
		return err
	}
	fd, fb, err := j.parent(from)
	if err != nil {
		return err
	}
	defer fd.close()
	td, tb, err := j.parent(to)
	if err != nil {
		return err
	}
	defer td.close()
	ft, _ := j.locate(from)
	tt, _ := j.locate(to)
	for {
		short, err := j.renameLocked(ft, fd, fb, tt, td, tb, replace)
		if short == (quota{}) {
			return err
		}
		// Room is made without the locks, which the maker of it takes too.
		if err := j.reserve(tt, short.bytes, short.files); err != nil {
			return err
		}
		tt.balance.unreserve(short.bytes, short.files)
	}
}

// renameLocked is one try at rename. short is what the user's quota has no room
// for, if that was in the way.
func (j *jail) renameLocked(from *tree, fromDir parentDir, fb string, to *tree, toDir parentDir, tb string, replace bool) (short quota, err error) {
	defer j.set.lockNames(fromDir.name(fb), toDir.name(tb))()
	fd, td := int(fromDir.Fd()), int(toDir.Fd())
	moved, ok, err := j.look(from, fd, fb)
	if err != nil {
		return short, err
	}
	if !ok {
		return short, unix.ENOENT
	}
	if moved.isDir() && from != to {
		return short, errAcross
	}
	old, exists, _ := j.look(to, td, tb)
	if exists && (moved.isDir() || !replace || old.isDir()) {
		return short, errExists
	}
	if exists && old.id() == moved.id() {
		return short, nil // two names of one file: rename(2) leaves both
	}
	// Into a home, or a share, a file comes at the expense of who brings it.
	pays := moved.balance
	if from != to {
		pays = to.balance
	}
	lost := quota{}
	if exists && old.balance == pays {
		lost = quota{old.counted(), 1}
	}
	need := quota{}
	if pays != moved.balance {
		need = quota{max(moved.counted()-lost.bytes, 0), 1 - lost.files}
		if err := pays.reserve(to.quota, need.bytes, need.files); err != nil {
			return need, err
		}
	}
	flags := uint(0)
	if moved.isDir() || !replace {
		flags = unix.RENAME_NOREPLACE // rename(2) would replace an empty directory
	}
	ended := func(bool) {}
	if !moved.isDir() {
		ended = j.liftPartial(to, td, tb) // of the content that is about to go
	}
	err = renameat(fd, fb, td, tb, flags)
	if ended(err == nil); err != nil {
		pays.unreserve(need.bytes, need.files)
		if err == unix.EEXIST || err == unix.ENOTEMPTY {
			err = errExists
		}
		return short, err
	}
	switch {
	case moved.isDir():
		pays.shift(-1)
		j.set.shareShaken.Add(1)
	case pays == moved.balance:
		pays.shift(moved.counted())
		if exists {
			old.gone()
		}
	default:
		moved.gone()
		if from != to && j.ownName(to, td, tb) != pays { // on a disk that cannot keep the owner
			pays.land(need, quota{}, lost)
		} else {
			pays.land(need, quota{moved.counted(), 1}, lost)
		}
		if exists && old.balance != pays {
			old.gone()
		}
	}
	if pays == moved.balance && from != to && j.ownName(to, td, tb) != pays {
		pays.drop(moved.counted(), 1) // to a disk that cannot keep the owner
	}
	return short, nil
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
	digits, ok := strings.CutPrefix(string(buf[:n]), fmt.Sprintf("%d %d.%09d %d ", e.size, e.sec, e.nsec, e.ino))
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
