// names.go is what happens to names in a jail: making, moving and removing them,
// by clients and by housekeeping. Each change is made under its name's lock and
// told to the ledger. It is apart from fs.go as another question: that one asks
// what a name leads to, this one what becomes of it and who pays. How a new
// content gets a name is in upload.go.

package main

import (
	"errors"
	"hash/maphash"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// --- locks ---

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

// --- whose quota ---

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
	balance  *balance
	partials *partialSet
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
	s.balance, s.partials = j.balanceOf(t, dir, base), j.set.partials
	return s, true, nil
}

// gone gives back what a name took that no longer exists. An inode with more
// names is still somebody's, but each name counted by itself.
func (s *stored) gone() {
	s.balance.drop(s.counted(), 1)
	s.partials.remove(s.id())
}

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

// --- changes ---

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
	held := map[uint64]bool{j.set.nameHash(dirName) % nameLocks: true}
	for _, name := range parts {
		// Not waited for, as the directory's own lock is held: an upload that is
		// about to take the partial up makes the directory busy anyway.
		if i := j.set.nameHash(id.name(name)) % nameLocks; !held[i] {
			if !j.set.names[i].TryLock() {
				return errBusy
			}
			defer j.set.names[i].Unlock()
			held[i] = true
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
		if err = unix.Unlinkat(fd, from, 0); err == unix.ENOENT {
			unix.Unlinkat(td, to, 0) // another berth has moved it at the same time, and only one can have
		}
		return err
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

// --- housekeeping ---

// removeFound removes a file that a sweep has seen, unless it has changed since
// or is being read or replaced; of complete ones only, if complete is set.
func (j *jail) removeFound(f *found, complete bool) error {
	dir, err := f.t.deepParent(f.rel)
	if err != nil {
		return err
	}
	defer dir.close()
	base := baseName(f.rel)
	defer j.set.lockNames(dir.name(base))()
	now, ok, err := j.look(f.t, int(dir.Fd()), base)
	if err != nil {
		return err
	}
	if !ok || !f.same(&now.entry) || j.set.used(f.id) || complete && isPartial(int(dir.Fd()), base) {
		return errBusy
	}
	if f.t.balance != nil {
		return j.unlink(f.t, int(dir.Fd()), base) // nobody but this berth stores here
	}
	ended := j.liftPartial(f.t, int(dir.Fd()), base)
	err = j.removeIf(int(dir.Fd()), base, func(_ *os.File, e *entry) bool { return f.same(e) })
	ended(err == nil)
	return err
}

// removeIf removes a file if it is the one that is to go, and never what another berth
// has given its name since this one looked: unlink(2) cannot be told which, so the file
// is moved to a name that nobody else has, and looked at there. A crash in between
// leaves what recovery knows.
func (j *jail) removeIf(dir int, base string, wanted func(*os.File, *entry) bool) error {
	away := j.set.stageName(uploadStore, base)
	j.set.staging(away, true)
	defer j.set.staging(away, false)
	if err := renameat(dir, base, dir, away, unix.RENAME_NOREPLACE); err != nil {
		return err
	}
	if !sameAs(dir, away, wanted) {
		putBack(dir, away, base)
		return errBusy
	}
	return unix.Unlinkat(dir, away, 0)
}

// sameAs tells whether what has a name is what was meant. It opens the file: on NFS
// only that asks the server, and not what this machine remembers of the name.
func sameAs(dir int, name string, meant func(*os.File, *entry) bool) bool {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	var e entry
	return fstat(f, &e) == nil && meant(f, &e)
}

// putBack gives a file its name back, which was taken from it by mistake, unless a newer
// one has got that meanwhile, which would have replaced it.
func putBack(dir int, away, base string) {
	if renameat(dir, away, dir, base, unix.RENAME_NOREPLACE) == unix.EEXIST {
		unix.Unlinkat(dir, away, 0)
	}
}

// lockless is how long a staging file may lie still where the disk has no
// flock(2) that could tell whether another berth is at it, or one that may be known to
// its own machine alone, as with FUSE, SMB and NFS with local_lock. It is far longer
// than limits.data_timeout lets an upload stand still.
const lockless = time.Hour

// restless is the same for one of this run of this machine, whose lock other processes
// here nearly always see: an upload moves within data_timeout.
const restless = 2 * time.Minute

// freshStage is how long an empty staging file without a lock may be one whose upload
// is about to take it.
const freshStage = time.Minute

// recoverStage ends, in its place, an upload that a crash has cut off: by the
// rules of an interruption if this is still the same run of the machine; else
// nobody knows how much of the file the disk really has, and it is removed.
// Other berths can be at work in the same directory, on this machine or another:
// what one of them holds the lock of is left alone. since is when this berth began:
// what is empty and was created after that is an upload that is about to take its
// lock. result tells what was done; "" is nothing, because
// the upload is running.
func (j *jail) recoverStage(f *found, since time.Time) (result string, err error) {
	boot, kind, base, ok := parseStage(baseName(f.rel))
	if !ok {
		return "", errorf("%q is not a name that berth gives", f.rel)
	}
	dir, err := f.t.deepParent(f.rel)
	if err != nil {
		return "", err
	}
	stage := baseName(f.rel)
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
	leave := lerr == unix.EWOULDBLOCK || j.set.isLive(stage) || fstat(u.file, &now) != nil
	shared := seenElsewhere(fd)
	far := shared && boot != j.set.boot // another machine's, or this one's before it restarted
	patience := time.Duration(0)
	if lerr != nil || far {
		patience = lockless
	} else if shared {
		patience = restless // two mounts of one disk on one machine need not have the same locks
	}
	still := time.Since(now.mtime())
	leave = leave || still < patience
	if !leave {
		var st unix.Stat_t
		if leave = unix.Fstatat(int(dir.Fd()), stage, &st, unix.AT_SYMLINK_NOFOLLOW) != nil; !leave {
			named.fromStat(&st)
			leave = named.id() != now.id() || // committed meanwhile
				f.t.byOwner && u.balance != nil && u.balance != j.balance || // another user's, whose sweep does it
				now.size == 0 && still < freshStage && !now.mtime().Before(since)
		}
	}
	u.size = now.size
	j.set.staged.Add(u.size)
	switch {
	case leave:
		u.end()
		return "", nil
	case base != "" && named.nlink > 1 && j.sameFile(dir, base, now.id()):
		// Without RENAME_NOREPLACE a name is given by link(2) first.
		result = "finished"
	case base == "" || kind == uploadCopied || now.size == 0:
		result = "removed"
	case far:
		result = "removed: of another machine, or of this one before it restarted"
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
