// upload.go is the life of an upload: a staging file beside its target, what may
// be continued, the commit by rename, and what stays of one that was cut off
// (contract section 5). It is apart from fs.go, whose jail it works in, because
// what it promises is about time and crashes, and not about names.

package main

import (
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// stagePrefix begins the staging file of an upload. Its whole name is
	//
	//	.berth-up-BBBBBBBBRRRRRRRRk.TARGET
	//
	// where B is of the machine's boot, R random, k the uploadKind and TARGET
	// the name it is meant for, left out where the disk has no room for it. So
	// what a crash leaves can be told, without a write that every upload would
	// have to pay for: see stageName and recover.
	stagePrefix   = reservedPrefix + "up-"
	partialPrefix = reservedPrefix + "part-" // what arrived of an upload over an existing file
	bootDigits    = 8
	randomDigits  = 8
	maxName       = 255     // NAME_MAX
	copyStep      = 8 << 20 // between two looks at whether a copy is still wanted

	// partialXattr marks a file that holds an interrupted upload under its own
	// name. A file system without user attributes loses the mark: the upload is
	// then continued on a copy, and cut again it is kept aside.
	partialXattr = "user.berth.partial"
)

// uploadKind is which command began an upload, as in the staging file's name.
type uploadKind byte

const (
	uploadStore  uploadKind = 's' // STOR: the whole content, or from an offset on
	uploadAppend uploadKind = 'a' // APPE: behind what is there
	uploadUnique uploadKind = 'u' // STOU: a name that nothing has
	// These are none of create's, but how the staging file is called of an upload
	// that goes on with a partial, or begins with a copy of a complete file's first
	// bytes, whichever command it came by.
	uploadResumed uploadKind = 'r'
	uploadCopied  uploadKind = 'c'
)

// An upload is one file on its way in. It lives in a staging file in the
// target's directory and takes the target's name by rename in commit; abort
// before that leaves the old file as it was. commit, interrupt, refuse
// and discard end it, by the goroutine that began it; the first of them counts.
type upload struct {
	file    *os.File // the staging file, positioned where the next byte goes; flock(2)ed
	start   int64    // bytes that were there already
	size    int64    // bytes in the staging file
	prefix  *os.File // where the first start bytes are still to be copied from; nil: they are there
	durable bool     // commit and interrupt end on stable storage
	sum     []byte   // SHA-256 of the whole content, if somebody computed it
	light   bool     // sum is told and not kept

	jail    *jail
	tree    *tree
	dir     parentDir
	name    nameIn // the target's, as it is locked
	base    string // the target's name in dir
	stage   string // the staging file's name in dir
	old     entry  // what had the target's name at the beginning; zero mode: nothing
	resumed bool   // the staging file was a marked partial
	kind    uploadKind
	done    bool
	group   *syncGroup // who shares the cost of stable storage; nil if it is not durable
	written int64      // bytes that the group counts as not there yet
	unuse   func()     // of the old file; nil if there is none
	live    string     // the staging file's name, as this process has it noted
	claimed fileID     // the old file, if its room is promised to this upload

	// What the ledger has been charged for this upload, and what of the old file
	// need not be, because it will be gone: a replaced file is charged for its
	// growth only.
	charged quota
	credit  quota
	balance *balance // whose; nil in a share whose disk cannot tell owners
}

// bootID is a few digits that differ from one run of the machine to the next, and
// from one machine to another. Within one run what was written is there, also after
// kill -9; across a loss of power it need not be.
func bootID() string {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return randomName()[:bootDigits] // of this run of berth, which is the safe side
	}
	sum := sha256.Sum256(id)
	return hexText(sum[:])[:bootDigits]
}

func (js *jailSet) stageName(kind uploadKind, base string) string {
	name := stagePrefix + js.boot + randomName()[:randomDigits] + string(kind)
	if full := name + "." + base; base != "" && len(full) <= maxName {
		return full
	}
	return name
}

// parseStage takes a staging file's name apart; ok is false for what berth
// does not call so.
func parseStage(name string) (boot string, kind uploadKind, base string, ok bool) {
	rest, is := cutPrefix(name, stagePrefix)
	if !is || len(rest) <= bootDigits+randomDigits {
		return "", 0, "", false
	}
	boot, kind, rest = rest[:bootDigits], uploadKind(rest[bootDigits+randomDigits]), rest[bootDigits+randomDigits+1:]
	if rest != "" {
		if base, is = cutPrefix(rest, "."); !is || base == "" || strings.Contains(base, "/") {
			return "", 0, "", false
		}
	}
	return boot, kind, base, true
}

// create begins an upload to p. offset is REST's; -1 for none. durable tells
// whether commit has to reach stable storage. What may be continued and what not
// is contract section 5:
//
//   - a partial kept aside, or one under its own name, is continued when
//     offset is its size;
//   - a complete file keeps its first offset bytes;
//   - everything else is an *offsetError.
func (j *jail) create(p string, kind uploadKind, offset int64, durable bool) (*upload, error) {
	dir, base, err := j.parent(p)
	if err != nil {
		if errors.Is(err, errShareRoot) {
			err = errIsDir
		}
		return nil, err
	}
	u := &upload{jail: j, dir: dir, base: base, name: dir.name(base), kind: kind, durable: durable}
	u.tree, _ = j.locate(p)
	u.balance = u.tree.balance
	if durable {
		u.group = j.set.syncs.join(dir)
	}
	if err := u.begin(offset); err != nil {
		u.discard()
		return nil, err
	}
	return u, nil
}

func (u *upload) begin(offset int64) error {
	d := int(u.dir.Fd())
	old, found, err := u.jail.look(u.tree, d, u.base)
	if err != nil {
		return err
	}
	if found {
		u.old = old.entry
		if u.old.mode&unix.S_IFMT == unix.S_IFLNK {
			// The link is replaced, not followed; but a link to a directory
			// looks like one to the client, and losing it would surprise.
			var st unix.Stat_t
			if unix.Fstatat(d, u.base, &st, 0) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR {
				return errIsDir
			}
		} else if err := u.old.mustBeFile(); err != nil {
			return err
		}
		u.unuse = u.jail.set.use(u.old.id())
		if old.balance == u.balance && u.jail.set.claim(u.old.id()) {
			u.claimed = u.old.id()
			u.credit = quota{u.old.counted(), 1}
		}
	}

	exists := u.old.isFile()
	if u.kind == uploadAppend {
		if exists {
			offset = u.old.size
		} else {
			offset = 0
		}
	}
	if offset <= 0 {
		kind := u.kind
		if kind == uploadAppend && u.old.mode != 0 {
			kind = uploadCopied // of nothing: recovery keeps as little of it as interrupt does
		}
		return u.createStage(kind)
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
	if offset == u.old.size && isPartial(d, u.base) {
		return u.adopt(u.base, offset)
	}
	if err := u.createStage(uploadCopied); err != nil {
		return err
	}
	return u.openPrefix(offset)
}

// createStage makes the staging file, with the mode of the file it will
// replace.
func (u *upload) createStage(kind uploadKind) error {
	if err := u.charge(0, 1-u.credit.files); err != nil {
		return err
	}
	name := u.jail.set.stageName(kind, u.base)
	u.jail.set.staging(name, true)
	u.live = name
	fd, err := unix.Openat(int(u.dir.Fd()), name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o666)
	if err != nil {
		return err
	}
	u.file, u.stage = os.NewFile(uintptr(fd), name), name
	// As long as this lock is held, nobody takes the file for what a crash has
	// left, whichever berth looks. A disk without locks does without.
	unix.Flock(fd, unix.LOCK_EX)
	if owner := u.jail.own(u.tree, fd); owner != u.balance {
		u.balance.unreserve(u.charged.bytes, u.charged.files)
		u.balance, u.charged, u.credit = owner, quota{}, quota{}
	}
	if u.old.isFile() {
		return unix.Fchmod(fd, u.old.mode&0o777)
	}
	return nil
}

// isPartial tells whether base is an interrupted upload under its own name.
func isPartial(dir int, base string) bool {
	fd, err := unix.Openat(dir, base, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	f := os.NewFile(uintptr(fd), base)
	defer f.Close()
	return markedPartial(f)
}

// markedPartial tells the same of an open file.
func markedPartial(f *os.File) bool {
	var b [1]byte
	_, err := unix.Fgetxattr(int(f.Fd()), partialXattr, b[:])
	return err == nil
}

// adopt takes a partial as the staging file. The lock and the rename make it
// this upload's alone: a second session that resumes it is told to wait.
func (u *upload) adopt(name string, offset int64) error {
	d := int(u.dir.Fd())
	fd, err := unix.Openat(d, name, unix.O_RDWR|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), name)
	defer func() {
		if u.file == nil {
			f.Close()
		}
	}()
	if unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) == unix.EWOULDBLOCK {
		return errBusy
	}
	defer u.jail.set.lockNames(u.name)()
	var mine entry
	if err := fstat(f, &mine); err != nil {
		return err
	}
	now, ok, err := u.jail.look(u.tree, d, name)
	if err != nil {
		return err
	}
	if !ok || now.id() != mine.id() {
		return errBusy // taken, or replaced, since it was looked at
	}
	if mine.size != offset {
		return &offsetError{have: mine.size, want: offset}
	}
	if _, err := unix.Seek(fd, 0, io.SeekEnd); err != nil {
		return err
	}
	others := now.balance != u.balance // in a share
	if others {
		if err := u.balance.reserve(u.tree.quota, mine.size, 1); err != nil {
			return err
		}
	}
	stage := u.jail.set.stageName(uploadResumed, u.base)
	u.jail.set.staging(stage, true)
	u.live = stage
	err = renameat(d, name, d, stage, unix.RENAME_NOREPLACE)
	if err == nil && !sameAs(d, stage, func(_ *os.File, e *entry) bool { return e.id() == mine.id() }) {
		// Another berth has given the name to a whole file at this very moment.
		putBack(d, stage, name)
		err = errBusy
	}
	if err != nil {
		if others {
			u.balance.unreserve(mine.size, 1)
		}
		return err
	}
	switch {
	case !others:
		u.balance.lift(mine.size, 1)
		u.charged = quota{mine.size, 1}
	case u.jail.own(u.tree, fd) == u.balance:
		now.gone()
		u.charged = quota{mine.size, 1}
	default:
		now.gone()
		u.balance.unreserve(mine.size, 1)
		u.balance = nil
	}
	u.jail.set.partials.remove(mine.id())
	u.file, u.stage = f, stage
	u.start, u.size, u.resumed = offset, offset, true
	u.jail.set.staged.Add(offset)
	if name == u.base {
		u.old, u.credit = entry{}, quota{} // the name is free now, and an interruption gives it back
	}
	return nil
}

// openPrefix notes that the upload goes on behind the first n bytes of the old
// file, as it is now.
func (u *upload) openPrefix(n int64) error {
	fd, err := unix.Openat(int(u.dir.Fd()), u.base, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	u.prefix = os.NewFile(uintptr(fd), u.base)
	var e entry
	if err := fstat(u.prefix, &e); err != nil {
		return err
	}
	if err := e.mustBeFile(); err != nil {
		return err
	}
	if e.id() != u.old.id() {
		return errBusy // replaced since: the offset is of the one that was there
	}
	if e.size < n {
		return &offsetError{have: e.size, want: n}
	}
	u.start = n
	return nil
}

// copyPrefix brings what is kept of the old file into the staging file: by
// reflink where the file system can, else inside the kernel. It stops with
// cancelled's error as soon as that returns one. Writing does it where nobody
// did; called before, it can be called off.
func (u *upload) copyPrefix(cancelled func() error) error {
	if u.prefix == nil {
		return nil
	}
	for u.size < u.start {
		if cancelled != nil {
			if err := cancelled(); err != nil {
				return err
			}
		}
		n := min(u.start-u.size, copyStep)
		if err := u.room(n); err != nil {
			return err
		}
		got, err := u.file.ReadFrom(&io.LimitedReader{R: u.prefix, N: n}) // copy_file_range(2)
		u.wrote(got)
		if err != nil {
			return err
		}
		if got != n {
			return &offsetError{have: u.size, want: u.start}
		}
	}
	u.prefix.Close()
	u.prefix = nil
	return nil
}

// charge reserves more of the user's quota for this upload.
func (u *upload) charge(bytes, files int64) error {
	if u.balance == nil || bytes <= 0 && files <= 0 {
		return nil
	}
	bytes, files = max(bytes, 0), max(files, 0)
	if err := u.jail.reserve(u.tree, bytes, files); err != nil {
		return err
	}
	u.charged.bytes += bytes
	u.charged.files += files
	return nil
}

// room makes sure that n bytes more may be written. Every write comes after it.
func (u *upload) room(n int64) error {
	return u.charge(u.size+n-u.credit.bytes-u.charged.bytes, 0)
}

// announced tells whether an upload that will have size bytes in all has room,
// before any of them is sent; with when_full = "rotate" room is made at once.
func (u *upload) announced(size int64) error {
	n := size - u.credit.bytes - u.charged.bytes
	if u.balance == nil || n <= 0 {
		return nil
	}
	return u.jail.ensure(u.tree, n, 0)
}

// Write puts p behind what was written before, if the quota has room for it.
func (u *upload) Write(p []byte) (int, error) {
	if err := u.copyPrefix(nil); err != nil {
		return 0, err
	}
	if err := u.room(int64(len(p))); err != nil {
		return 0, err
	}
	n, err := u.file.Write(p)
	u.wrote(int64(n))
	return n, err
}

func (u *upload) wrote(n int64) {
	u.size += n
	u.jail.set.staged.Add(n)
	if u.group != nil {
		u.written += n
		u.group.dirty.Add(n)
	}
}

// drain writes n bytes that lie in a pipe, inside the kernel.
func (u *upload) drain(pipe, n int) error {
	if err := u.room(int64(n)); err != nil {
		return err
	}
	fd := int(u.file.Fd())
	for n > 0 {
		m, err := unix.Splice(pipe, nil, fd, nil, n, unix.SPLICE_F_MOVE)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return &os.PathError{Op: "splice", Path: u.stage, Err: err}
		}
		if m == 0 {
			return io.ErrShortWrite
		}
		u.wrote(int64(m)) // its type is the processor's
		n -= int(m)
	}
	return nil
}

// commit gives the upload its name. When it returns nil the content and the
// name are there, and if it is durable also on stable storage: file first, then
// the rename, then the directory. On an error the upload is gone, or what was a
// partial before is one again, and the old file is still there; only if it was
// the directory that could not be flushed, the new one has its place.
func (u *upload) commit() error {
	if err := u.copyPrefix(nil); err != nil { // an APPE of nothing
		u.discard()
		return err
	}
	fd := int(u.file.Fd())
	if u.resumed {
		unix.Fremovexattr(fd, partialXattr)
	}
	if u.sum != nil && !u.light {
		var e entry
		if fstat(u.file, &e) == nil {
			keepDigest(fd, &e, u.sum)
		}
	}
	if u.durable {
		if err := u.syncContent(); err != nil {
			if noRoom(err) {
				u.refuse()
			} else {
				u.discard() // nobody knows what of it the disk has
			}
			return errorf("fdatasync: %w", err)
		}
	} else if u.old.isFile() {
		// ext4 begins writing a file out when it replaces another (ext4(5),
		// auto_da_alloc), and would do so with the directory locked.
		unix.SyncFileRange(fd, 0, 0, unix.SYNC_FILE_RANGE_WRITE)
	}
	for {
		short, err := u.take()
		if err == nil {
			break
		}
		if short != (quota{}) {
			// What the upload was to replace is gone, and with it the room that it
			// would have made; look for more, without the locks.
			if err = u.charge(short.bytes, short.files); err == nil {
				continue
			}
		}
		if noRoom(err) {
			u.refuse()
		} else if u.resumed {
			u.interrupt()
		} else {
			u.discard()
		}
		return err
	}
	var err error
	if u.durable {
		err = u.group.sync(int(u.dir.Fd()), true)
		if err == nil {
			// An xfs that has shut itself down says that a directory is safe that
			// never reached its log; reading is refused.
			var b [1]byte
			_, err = unix.Pread(fd, b[:], 0)
		}
	}
	u.end()
	return err
}

// syncContent waits for the content on stable storage: in company, unless that
// is much.
func (u *upload) syncContent() error {
	fd := int(u.file.Fd())
	if u.size-u.start >= loneSync {
		return syncFile(fd)
	}
	return u.group.sync(fd, false)
}

// take is the moment of commit: the staging file becomes the target.
func (u *upload) take() (short quota, err error) {
	defer u.jail.set.lockNames(u.name)()
	flags := uint(0)
	if u.kind == uploadUnique {
		flags = unix.RENAME_NOREPLACE
	}
	// An older try at the same name goes too, and not only if a file has the name
	// now: left over, it could be spliced into this content by a later restart.
	ended := u.jail.liftPartial(u.tree, int(u.dir.Fd()), u.base)
	short, err = u.place(u.base, flags)
	ended(err == nil)
	return short, err
}

// place renames the staging file to to and settles what is charged for it: its
// growth over what it replaces. short is what the quota has no room for, if that
// was in the way. The name's lock must be held.
func (u *upload) place(to string, flags uint) (short quota, err error) {
	j, d := u.jail, int(u.dir.Fd())
	old, exists, err := j.look(u.tree, d, to)
	if err != nil {
		return short, err
	}
	lost := quota{}
	if exists && old.balance == u.balance {
		lost = quota{old.counted(), 1}
	}
	more := quota{max(u.size-u.charged.bytes-lost.bytes, 0), max(1-u.charged.files-lost.files, 0)}
	if err := u.balance.reserve(u.tree.quota, more.bytes, more.files); err != nil {
		return more, err
	}
	if err := renameat(d, u.stage, d, to, flags); err != nil {
		u.balance.unreserve(more.bytes, more.files)
		return short, err
	}
	if exists && old.balance != u.balance {
		old.gone()
	}
	if exists {
		j.set.partials.remove(old.id())
	}
	u.balance.land(quota{u.charged.bytes + more.bytes, u.charged.files + more.files}, quota{u.size, 1}, lost)
	u.stage, u.charged = "", quota{}
	return short, nil
}

// interrupt ends an upload that did not finish. What arrived of a new name
// takes that name, marked as partial; over an existing file it is kept aside,
// as far as the quota has room for both. Nothing is kept of an upload that
// brought no byte, nor of an APPE to a complete file, whose copy would only
// stand in the way of a restart; but what was a partial before is one
// afterwards, whatever the command.
func (u *upload) interrupt() {
	if u.done {
		return
	}
	if !u.resumed && (u.size <= u.start || u.kind == uploadAppend && u.old.mode != 0) {
		u.discard()
		return
	}
	unix.Fsetxattr(int(u.file.Fd()), partialXattr, []byte{'1'}, 0)
	if u.durable {
		// A restart after a loss of power must not go on from bytes that the file
		// has the length for and the disk never had.
		syncFile(int(u.file.Fd()))
	}
	switch err := u.keep(); {
	case err == nil:
		if u.durable {
			syncDir(int(u.dir.Fd()))
		}
		var e entry
		if fstat(u.file, &e) == nil {
			u.jail.set.partials.add(u.jail.key.user, e.id(), e.sec)
		}
	case u.resumed && !errors.As(err, new(*quotaError)):
		// It was kept once and cannot be named now: the next sweep tries again.
		u.balance.unreserve(u.charged.bytes, u.charged.files)
		u.stage, u.charged = "", quota{}
		if u.jail.set.attend != nil {
			u.jail.set.attend(u.jail.key.user, time.Now().Add(asideCheck))
		}
	}
	u.end()
}

// noRoom tells whether quota or disk is too small for an upload.
func noRoom(err error) bool {
	return errors.As(err, new(*quotaError)) || errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) || errors.Is(err, unix.EFBIG)
}

// refuse ends an upload that there is no room for, or that came out wrong, and keeps
// nothing of it but what was a partial before. Kept like other partials it would fill the quota or
// the disk to the brim, in the way of every upload that does fit, for the sake
// of one that does not.
func (u *upload) refuse() {
	if u.done {
		return
	}
	if u.resumed && u.cut(u.start) {
		u.interrupt()
		return
	}
	u.discard()
}

// fit cuts what a crash left down to what the quota has room for: as long as it
// was to replace a file, it did not count as far as that goes. It tells whether
// anything is left.
func (u *upload) fit() bool {
	q := u.tree.quota
	bytes, files, known := u.balance.usage()
	if !known {
		return true
	}
	if q.files > 0 && files > q.files {
		return false
	}
	if over := bytes - q.bytes; q.bytes > 0 && over > 0 {
		return u.cut(u.size - over)
	}
	return true
}

// cut shortens a partial to n bytes; false: that would leave nothing.
func (u *upload) cut(n int64) bool {
	if n <= 0 || unix.Ftruncate(int(u.file.Fd()), n) != nil {
		return false
	}
	u.jail.set.staged.Add(n - u.size)
	u.size = n
	if u.charged.bytes > n {
		u.balance.unreserve(u.charged.bytes-n, 0)
		u.charged.bytes = n
	}
	return true
}

// keepTries is how often keep looks again when another berth changes the name between
// the look and the rename.
const keepTries = 4

// keep gives the staging file the name of a partial.
func (u *upload) keep() error {
	j, d := u.jail, int(u.dir.Fd())
	defer j.set.lockNames(u.name)()
	for range keepTries {
		now, exists, err := j.look(u.tree, d, u.base)
		if err != nil {
			return err
		}
		// A partial under the name is replaced, the later try being the one that its
		// client will go on with; a complete file is not.
		to, flags, ended := u.base, uint(0), func(bool) {}
		if u.tree.balance == nil { // other berths may store here
			flags = unix.RENAME_NOREPLACE
		}
		switch {
		case !exists:
		case !isPartial(d, to):
			to, flags = partialName(u.base), 0
		case flags != 0:
			if j.removeIf(d, to, func(f *os.File, e *entry) bool { return e.id() == now.id() && markedPartial(f) }) != nil {
				continue
			}
			j.set.partials.remove(now.id())
		}
		if to == u.base {
			ended = j.liftPartial(u.tree, d, to) // a restart must find this one
		}
		short, err := u.place(to, flags)
		if err != nil && short.bytes > 0 {
			// What was to be replaced stays, and needs its room: keep what fits beside.
			if left, limited := u.balance.left(u.tree.quota); limited && u.cut(u.size-short.bytes+left) {
				_, err = u.place(to, flags)
			}
		}
		ended(err == nil)
		if err == unix.EEXIST && flags != 0 {
			continue
		}
		if err == nil && to != u.base && j.set.attend != nil {
			j.set.attend(j.key.user, time.Now().Add(asideCheck))
		}
		return err
	}
	return errBusy
}

// asideCheck is how soon after a partial was kept aside a sweep looks for when
// its time will be over.
const asideCheck = time.Second

// discard ends an upload and leaves nothing of it.
func (u *upload) discard() {
	if !u.done {
		u.end()
	}
}

// end gives back what the upload holds: its file, unless that has a name now,
// and what it was charged.
func (u *upload) end() {
	u.done = true
	u.jail.set.staged.Add(-u.size)
	if u.stage != "" {
		if err := unix.Unlinkat(int(u.dir.Fd()), u.stage, 0); err != nil && err != unix.ENOENT && u.jail.set.attend != nil {
			// A sweep finds it, takes it for what a crash has left, and charges it anew.
			u.jail.set.attend(u.jail.key.user, time.Now().Add(asideCheck))
		}
	}
	u.balance.unreserve(u.charged.bytes, u.charged.files)
	if u.file != nil {
		u.file.Close()
	}
	if u.prefix != nil {
		u.prefix.Close()
	}
	u.dir.close()
	if u.group != nil {
		u.jail.set.syncs.leave(u.group, u.written)
	}
	if u.unuse != nil {
		u.unuse()
	}
	if u.live != "" {
		u.jail.set.staging(u.live, false)
	}
	if u.claimed != (fileID{}) {
		u.jail.set.unclaim(u.claimed)
	}
}

// partialName is where what arrived of an upload over base is kept: of fixed
// length, so that a name of 255 bytes has a partial too.
func partialName(base string) string {
	h := sha256.Sum256([]byte(base))
	return partialPrefix + hexText(h[:12])
}

func randomName() string {
	var b [8]byte
	rand.Read(b[:]) // never fails: crypto/rand
	return hexText(b[:])
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

// openPartial opens what an interrupted upload to p has left: what is kept aside,
// or the file itself where it is a marked partial. fs.ErrNotExist: nothing.
func (j *jail) openPartial(p string) (*os.File, int64, error) {
	dir, base, err := j.parent(p)
	if err != nil {
		return nil, 0, err
	}
	defer dir.close()
	d := int(dir.Fd())
	for _, name := range []string{partialName(base), base} {
		if name == base && !isPartial(d, base) {
			break
		}
		fd, err := unix.Openat(d, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err == unix.ENOENT {
			continue
		}
		if err != nil {
			return nil, 0, err
		}
		f := os.NewFile(uintptr(fd), name)
		var e entry
		if err = fstat(f, &e); err == nil {
			err = e.mustBeFile()
		}
		if err != nil {
			f.Close()
			return nil, 0, err
		}
		return f, e.size, nil
	}
	return nil, 0, fs.ErrNotExist
}
