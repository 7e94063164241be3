// oneberth.go keeps the ledgers of two berths apart. A ledger knows only what its own
// berth writes, so each home that is counted is locked by the berth that counts it,
// from when it is first opened until that berth ends, and every other one is refused.
// With quota = "filesystem" nobody counts, and any number of berths may serve a home.
// It is apart from ledger.go because it is about processes and disks, not numbers.
//
// The lock is flock(2)'s, which ends with its process, however that ends. On the
// machine's own disks it is on the home itself, so that nothing lies about there; on a
// disk that other machines see, on a file in it, as NFS has no locks for directories.

package main

import (
	"cmp"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	homeLockName = reservedPrefix + "lock"
	// homeLockLinger is how long a home stays locked that no user's file counts any
	// more, and how soon one that another berth has is tried again.
	homeLockLinger = time.Minute
	// disabledLinger is the same for homes of disabled users: no more than a login
	// needs that was under way when they became so.
	disabledLinger = 2 * time.Second
	// homeLockShare is the part of the files that may be open (RLIMIT_NOFILE) which
	// locks may take: a quarter. Homes beyond that are counted without a lock.
	homeLockShare = 4

	// ledgerXattr names, on a home, the ledger that counted it last: figures that
	// another one has kept of it from before that are worth nothing.
	ledgerXattr  = "user.berth.ledger"
	ledgerDigits = 16
)

// errOtherBerth is a home that another berth counts.
var errOtherBerth = errors.New("another berth counts this home")

// A homeLock is one home that this berth counts, or is about to.
type homeLock struct {
	tried chan struct{} // closed when file and err are there
	file  *os.File      // nil: it is read-only, or its disk has no locks
	err   error
	used  time.Time // when somebody last asked; guarded by ledger.mu
}

// hold makes sure that no other berth counts the home id, which dir is open at. It
// waits for nobody: a berth that is about to end has ended by one of the next logins.
func (l *ledger) hold(dir int, id fileID, home string) error {
	l.mu.Lock()
	h := l.held[id]
	mine := h == nil
	if mine {
		h = &homeLock{tried: make(chan struct{})}
		l.held[id] = h
	}
	h.used = time.Now()
	crowd := l.most > 0 && len(l.held) > l.most
	l.mu.Unlock()
	if !mine {
		<-h.tried
		return h.err
	}
	// Outside the lock, as all that may hang with a network disk.
	var holder string
	h.file, holder, h.err = lockHome(dir, crowd)
	switch {
	case errors.Is(h.err, errOtherBerth):
		l.mu.Lock()
		delete(l.held, id)
		again := l.told[home]
		l.told[home] = true
		l.mu.Unlock()
		if !again {
			l.log.Error("home is counted by another berth; its users are refused here", "home", home, "by", cmp.Or(holder, "another process of this machine"),
				"do", `end that berth, or set quota = "filesystem" for these users in both`)
		}
	case h.err != nil:
		l.noLocks.Do(func() {
			l.log.Warn("home cannot be locked; see that no other berth counts it", "home", home, "error", h.err)
		})
		h.err = nil
		fallthrough
	default:
		l.mu.Lock()
		delete(l.told, home)
		l.mu.Unlock()
		l.keep()
		l.claim(h.file, dir, home)
	}
	close(h.tried)
	return h.err
}

// elsewhere tells whether another berth had a home when it was last asked for. Nothing
// is looked at, as it is for who must not wait for a disk.
func (l *ledger) elsewhere(home string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.told[home]
}

// lockHome locks the home that dir is open at. holder is who has it, where that can be
// told. crowd leaves it open to all, for want of files.
func lockHome(dir int, crowd bool) (f *os.File, holder string, err error) {
	if crowd {
		return nil, "", errorf("a %dth of the files that may be open (%w) are locks; raise LimitNOFILE=", homeLockShare, unix.EMFILE)
	}
	name, flags := ".", unix.O_RDONLY|unix.O_DIRECTORY
	if seenElsewhere(dir) {
		name, flags = homeLockName, unix.O_RDWR|unix.O_CREAT|unix.O_NOFOLLOW|unix.O_NONBLOCK
	}
	fd, err := unix.Openat(dir, name, flags|unix.O_CLOEXEC, 0o640)
	if err == unix.EROFS || err == unix.EACCES || err == unix.EPERM {
		return nil, "", nil // nothing is stored there either
	}
	if err != nil {
		return nil, "", err
	}
	var st unix.Stat_t
	if err = unix.Fstat(fd, &st); err == nil && name == homeLockName && (st.Mode&unix.S_IFMT != unix.S_IFREG || st.Nlink > 1) {
		// A user's program has made it: reading a pipe would never end, and what is
		// written could go to a file that is not his.
		err = errors.New(homeLockName + " is no file of its own; remove it")
	}
	if err != nil {
		unix.Close(fd)
		return nil, "", err
	}
	f = os.NewFile(uintptr(fd), name)
	if err = unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB); err == nil {
		if name == homeLockName {
			host, _ := os.Hostname()
			f.Truncate(0)
			fmt.Fprintf(f, "pid %d on %s\n", os.Getpid(), host)
		}
		return f, "", nil
	}
	defer f.Close()
	if err != unix.EWOULDBLOCK {
		return nil, "", err
	}
	if name == homeLockName {
		var b [128]byte
		n, _ := f.Read(b[:])
		holder = strings.TrimSpace(strings.ToValidUTF8(string(b[:n]), "?"))
	}
	return nil, holder, errOtherBerth
}

// claim notes on the home that this ledger counts it from now on. Had another one
// done so since, what this one has of an earlier run is forgotten.
func (l *ledger) claim(f *os.File, dir int, home string) {
	if f == nil {
		return
	}
	fd := int(f.Fd())
	if f.Name() != "." {
		var err error
		if fd, err = unix.Openat(dir, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
			return
		}
		defer unix.Close(fd)
	}
	var b [ledgerDigits]byte
	n, err := unix.Fgetxattr(fd, ledgerXattr, b[:])
	if err == nil && string(b[:n]) == l.name {
		return
	}
	if err == nil || err == unix.ERANGE {
		l.mu.Lock()
		delete(l.past, home)
		l.mu.Unlock()
	}
	unix.Fsetxattr(fd, ledgerXattr, []byte(l.name), 0)
}

// letGo gives up the homes that none of these users has counted any more, as after a
// reload with quota = "filesystem", nor anybody has asked for of late. inUse tells of
// those that a session has still open. Homes of disabled users alone are given up, too:
// a lock is an open file, and their disk could not be unmounted. The figures of these
// are still shown, and made anew when one of them is enabled.
func (l *ledger) letGo(users []*user, inUse map[fileID]bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var files []*os.File
	shown := map[*balance]bool{}
	for _, u := range users {
		if b := l.users[u.Name]; b != nil && u.Quota != "filesystem" {
			shown[b] = true
			if !u.Disabled {
				inUse[b.id] = true
			}
		}
	}
	for id, h := range l.held {
		select {
		case <-h.tried:
		default:
			continue // its disk hangs
		}
		b, linger := l.homes[id], homeLockLinger
		if shown[b] {
			linger = disabledLinger
		}
		if inUse[id] || time.Since(h.used) < linger {
			continue
		}
		// Others may write there from now on: to be counted anew.
		if shown[b] {
			b.mu.Lock()
			b.exact = false
			b.mu.Unlock()
		} else {
			for user, b := range l.users {
				if b.id == id {
					delete(l.users, user)
				}
			}
			delete(l.homes, id)
		}
		delete(l.held, id)
		if h.file != nil {
			files = append(files, h.file)
		}
	}
	if len(files) > 0 {
		go func() { // a disk that hangs may have the unlocking wait
			for _, f := range files {
				f.Close()
			}
		}()
	}
}

// counted is whose homes the ledger counts, and where they are.
func (h *housekeeper) counted() map[string]string {
	homes := map[string]string{}
	for _, u := range h.users.all() {
		if u.Quota != "filesystem" {
			homes[u.Name] = u.Home
		}
	}
	return homes
}

// counted is the homes that sessions have open, of those that the ledger counts.
func (js *jailSet) counted() map[fileID]bool {
	js.mu.Lock()
	defer js.mu.Unlock()
	homes := map[fileID]bool{}
	for key := range js.open {
		if key.counted {
			homes[key.id] = true
		}
	}
	return homes
}

// mixed tells the log of a home that this berth does not count, and another one does:
// that one's figures are wrong as soon as something is stored here.
func (l *ledger) mixed(dir int, id fileID, user, home string) {
	l.mu.Lock()
	mine := l.held[id] != nil
	l.mu.Unlock()
	if mine {
		return
	}
	name := "."
	if seenElsewhere(dir) {
		name = homeLockName
	}
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return // there is no lock
	}
	defer unix.Close(fd)
	if unix.Flock(fd, unix.LOCK_SH|unix.LOCK_NB) == unix.EWOULDBLOCK {
		l.log.Warn("another berth counts a home that is not counted here; it does not see what is stored here", "user", user, "home", home,
			"do", `set quota = "filesystem" for this user there, too`)
	}
}

// lockState locks the state directory's ledger for this berth, and tells the
// ledger's name, which it was given when it was first kept.
func lockState(dir string) (f *os.File, name string, err error) {
	f, err = os.OpenFile(filepath.Join(dir, ledgerLock), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, "", err
	}
	if err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, "", err
	}
	b := make([]byte, ledgerDigits)
	if n, _ := f.ReadAt(b, 0); n == len(b) {
		if _, err := hex.DecodeString(string(b)); err == nil {
			return f, string(b), nil
		}
	}
	name = newLedgerName()
	f.WriteAt([]byte(name), 0)
	return f, name, nil
}

func newLedgerName() string {
	var b [ledgerDigits / 2]byte
	rand.Read(b[:]) // never fails: crypto/rand
	return hexText(b[:])
}

// keep takes the state directory's ledger over from a berth that had it when this one
// began, and has ended since. It tells whether this berth keeps it.
func (l *ledger) keep() bool {
	l.writing.Lock()
	defer l.writing.Unlock()
	if l.lock != nil || !errors.Is(l.noLock, unix.EWOULDBLOCK) {
		return l.lock != nil
	}
	f, _, err := lockState(l.dir)
	if err != nil {
		return false
	}
	// What is in it is no longer the truth: both may have stored things.
	if err := os.Remove(filepath.Join(l.dir, ledgerName)); err != nil && !errors.Is(err, os.ErrNotExist) {
		f.Close()
		return false
	}
	l.lock, l.noLock = f, nil
	l.log.Info("the other berth has ended; this one keeps the quota ledger from now on", "dir", l.dir)
	return true
}

// seenElsewhere tells whether other machines may see what is open as fd: unless it is on
// a kind of file system (statfs(2)'s f_type) that only one machine can have. What is not
// in the list is taken for a shared one, which costs patience, and no file.
var seenElsewhere = func(fd int) bool { // a variable for tests, which have no such disk
	var st unix.Statfs_t
	if unix.Fstatfs(fd, &st) != nil {
		return false
	}
	switch uint32(st.Type) {
	case unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC, unix.F2FS_SUPER_MAGIC, unix.BCACHEFS_SUPER_MAGIC,
		unix.TMPFS_MAGIC, unix.RAMFS_MAGIC, unix.OVERLAYFS_SUPER_MAGIC, unix.MSDOS_SUPER_MAGIC, unix.EXFAT_SUPER_MAGIC,
		unix.NILFS_SUPER_MAGIC, unix.REISERFS_SUPER_MAGIC, unix.JFFS2_SUPER_MAGIC, unix.SQUASHFS_MAGIC, unix.ISOFS_SUPER_MAGIC,
		0x2fc12fc1, // zfs
		0x24051905, // ubifs
		0x7366746e, // ntfs3
		0x3153464a: // jfs
		return false
	}
	return true
}
