// upload.go is the life of an upload: a staging file beside its target, what may
// be continued, the commit by rename, and what stays of one that was cut off
// (contract section 5). It is apart from fs.go, whose jail it works in, because
// what it promises is about time and crashes, and not about names.

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

	"golang.org/x/sys/unix"
)

const (
	stagePrefix   = reservedPrefix + "up-"   // an upload that is running
	partialPrefix = reservedPrefix + "part-" // what arrived of an upload over an existing file

	// partialXattr marks a file that holds an interrupted upload under its own
	// name. A file system without user attributes loses the mark: the upload is
	// then continued on a copy, and cut again it is kept aside.
	partialXattr = "user.berth.partial"
)

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
