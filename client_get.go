// client_get.go is one file on its way from the box. It is written beside its name,
// as .berth-get-NAME, and takes the name when its digest has been compared; what a
// lost connection or process leaves is gone on with if the box has the same bytes.
// All but the beginning of a get runs in the goroutine that reads the connection.
// The engine is client_transfer.go.

package main

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// getPrefix begins the names of files that are being fetched. The server knows no
	// such names, so a put of the whole directory leaves them alone.
	getPrefix = reservedPrefix + "get-"
)

// partName is where the file of that name is written while it is fetched.
func partName(name string) string {
	dir, base := filepath.Split(name)
	if len(getPrefix)+len(base) > maxName {
		sum := sha256.Sum256([]byte(base))
		base = hexText(sum[:])
	}
	return dir + getPrefix + base
}

// A getStream is standard output, or another file that only takes what comes.
type getStream struct {
	w    io.Writer
	at   int64
	sum  hash.Hash
	tail hash.Hash // of what came since the connection was lost; nil: it was not
}

// A getting is one get that was begun.
type getting struct {
	w     *worker
	j     *transferJob
	files localFiles
	name  string   // that the file is to have here
	part  *os.File // where it is until then; nil: a stream, or not begun

	offset int64 // this much is there already
	prefix hash.Hash
	expect *remoteAnswer // what stat told when that was compared
	size   int64
	mtime  time.Time
	mode   string
	at     int64 // end of what has come
	got    int64 // now
	sum    *follower
	small  bool
	told   endFrame
	ended  bool // F came
}

// get begins the job; how it goes on is for the reader.
func (w *worker) get(j *transferJob) {
	g := &getting{w: w, j: j, files: localFiles{j.root}, name: j.local}
	err := g.run()
	if err == nil {
		return
	}
	g.release()
	if w.retriable(j, err) {
		w.e.mu.Lock()
		w.redo = append(w.redo, j)
		w.e.mu.Unlock()
		return
	}
	j.finish(w.e, jobResult{err: err, size: max(g.size, 0)})
}

// run returns an error if nothing was begun.
func (g *getting) run() error {
	j := g.j
	if j.local == "-" && j.sink == nil {
		j.sink = &getStream{w: g.w.e.o.stdout, sum: sha256.New()}
	}
	if j.sink == nil {
		if err := g.target(); err != nil {
			return err
		}
	}
	switch {
	case j.sink != nil && j.sink.at > 0:
		if err := g.agreeStream(); err != nil {
			return err
		}
	case j.sink == nil && (j.resume || j.again):
		if done, err := g.agree(); done || err != nil {
			return err
		}
	}
	_, err := g.w.c.begin(remoteRequest{Do: "get", Path: j.remote, Offset: g.offset}, remoteHandlers{
		opened: g.opened, block: g.block, end: g.end, final: g.final,
	})
	if err == nil {
		g.w.began()
	}
	return err
}

// target looks at what has the name already.
func (g *getting) target() error {
	info, err := g.files.stat(g.name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return localError(err)
	case info.IsDir():
		return localError(unix.EISDIR)
	case !info.Mode().IsRegular():
		// A device or a pipe takes what comes, as cp does it.
		f, err := g.files.open(g.name, os.O_WRONLY, 0)
		if err != nil {
			return localError(err)
		}
		g.j.opened, g.j.sink = f, &getStream{w: f, sum: sha256.New()}
		return nil
	}
	if g.files.root == nil { // a link leads to the file that is meant
		if real, err := filepath.EvalSymlinks(g.name); err == nil {
			g.name = real
		}
	}
	return nil
}

// openPart opens the file beside the name, for this get alone; create makes it if it
// is not there. In a directory that others may write, one that they have put there is
// not taken: neither a link, which leads anywhere, nor a file that they keep a hold of.
func (g *getting) openPart(create bool) error {
	name := partName(g.name)
	f, err := g.files.open(name, os.O_RDWR|unix.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) && create {
		if f, err = g.files.open(name, os.O_RDWR|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600); err != nil { // attributes gives it its mode
			return localError(err)
		}
	} else if err == nil {
		err = g.isOurs(f, name)
	} else if !errors.Is(err, unix.ELOOP) {
		return localError(err)
	}
	if err != nil {
		f.Close()
		return &localFailure{fmt.Sprintf("%s is somebody else's; remove it", shownText(name)), err}
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return &localFailure{"another berth is fetching it", err}
	}
	g.part = f
	return nil
}

// isOurs returns an error if f, which was there already, is not a file of this user's
// own with that one name. Where a file system says who owns everything, as FAT and CIFS
// do, that is the directory's owner, who could do without tricks.
func (g *getting) isOurs(f *os.File, name string) error {
	at, err := g.files.lstat(name)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || !info.Mode().IsRegular() || !os.SameFile(at, info) || st.Nlink > 1 {
		return errNotOurs
	}
	if int(st.Uid) != os.Geteuid() {
		dir, err := g.files.stat(filepath.Dir(name))
		if err != nil {
			return err
		}
		if d, ok := dir.Sys().(*syscall.Stat_t); !ok || d.Uid != st.Uid {
			return errNotOurs
		}
	}
	if info.Mode().Perm()&0o077 != 0 {
		f.Chmod(0o600) // until it has the mode that it is to have
	}
	return nil
}

var errNotOurs = errors.New("not a file of this user's own")

// agree finds out whether what is here already is what the box has. done: all of it
// is.
func (g *getting) agree() (done bool, err error) {
	j, c := g.j, g.w.c
	if err := g.openPart(false); errors.Is(err, fs.ErrNotExist) {
		return g.have()
	} else if err != nil {
		return false, err
	}
	info, err := g.part.Stat()
	if err != nil {
		return false, localError(err)
	}
	have := info.Size()
	if have == 0 {
		return false, nil
	}
	a, err := c.do(remoteRequest{Do: "stat", Path: j.remote})
	if err != nil {
		return false, err
	}
	j.show(g.w.e, a.Size)
	if have > a.Size {
		j.note = "it has changed, so it was fetched anew"
		return false, nil
	}
	ours, err := g.compare(have, func() (hash.Hash, error) { return digestUpTo(g.w.e.ctx, g.part, have, nil) })
	if err != nil {
		return false, err
	}
	if ours == nil {
		j.note = "it has changed, so it was fetched anew"
		return false, nil
	}
	g.offset, g.prefix, g.expect = have, ours, a
	j.note = "resumed at " + humanBytes(have)
	return false, nil
}

// compare is the digest of the first n bytes here if it is that of the box, else nil.
func (g *getting) compare(n int64, here func() (hash.Hash, error)) (hash.Hash, error) {
	g.j.bar.phase("comparing")
	defer g.j.bar.phase("")
	// The box computes its own meanwhile.
	c := g.w.c
	k, err := c.begin(remoteRequest{Do: "hash", Path: g.j.remote, Size: &n}, remoteHandlers{})
	if err == nil {
		err = c.flush()
	}
	if err != nil {
		return nil, err
	}
	ours, herr := here()
	a, err := k.wait()
	if err == nil {
		err = herr
	}
	if err != nil || a.SHA256 != hexText(ours.Sum(nil)) {
		return nil, err
	}
	return ours, nil
}

// have tells whether the file itself is here and the same, so that nothing is to do.
func (g *getting) have() (bool, error) {
	j := g.j
	f, err := g.files.open(g.name, os.O_RDONLY, 0)
	if err != nil {
		return false, nil
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return false, nil
	}
	a, err := g.w.c.do(remoteRequest{Do: "stat", Path: j.remote})
	if err != nil || a.Type != "file" || a.Size != info.Size() {
		return false, nil // the get itself says what is wrong
	}
	j.show(g.w.e, a.Size)
	ours, err := g.compare(a.Size, func() (hash.Hash, error) { return digestUpTo(g.w.e.ctx, f, info.Size(), nil) })
	if err != nil || ours == nil {
		return false, err
	}
	g.mtime, g.mode = a.MTime, a.Mode
	if err := g.attributes(f); err != nil {
		return false, err
	}
	note := "already here"
	if j.again {
		note = ""
	}
	j.finish(g.w.e, jobResult{size: a.Size, sha256: hexText(ours.Sum(nil)), note: note})
	return true, nil
}

// agreeStream goes on with what was written to a stream.
func (g *getting) agreeStream() error {
	s := g.j.sink
	a, err := g.w.c.do(remoteRequest{Do: "stat", Path: g.j.remote})
	if err != nil {
		return err
	}
	ours, err := g.compare(s.at, func() (hash.Hash, error) { return s.sum.(hash.Cloner).Clone() })
	if err != nil {
		return err
	}
	if ours == nil {
		return &localFailure{fmt.Sprintf("it has changed on the box after %s of it were written; get it again", humanBytes(s.at)), nil}
	}
	g.offset, g.expect = s.at, a
	g.j.note = "resumed at " + humanBytes(s.at)
	return nil
}

// opened is for the preliminary answer.
func (g *getting) opened(a *remoteAnswer) error {
	j := g.j
	if a.Offset != g.offset {
		return &connError{text: fmt.Sprintf("%s begins at byte %d and not at %d as it was asked", g.w.c.host, a.Offset, g.offset)}
	}
	if e := g.expect; e != nil && (e.Size != a.Size || !e.MTime.Equal(a.MTime)) {
		g.w.stop()
		j.note = "it has changed, so it was fetched anew"
		if g.part != nil {
			g.part.Truncate(0)
		}
		return anewError{newError("it changes all the time; get it when it does not")}
	}
	g.size, g.mtime, g.mode, g.at = a.Size, a.MTime, a.Mode, g.offset
	if string(a.Partial) == "true" && j.note == "" {
		j.note = "it is what an interrupted upload has left"
		g.w.e.prog.warn("berth %s: %s: this is only what an interrupted upload has left of it", g.w.e.o.verb, shownText(j.name))
	}
	g.small = g.size-g.offset <= smallFile
	if !g.small || g.j.sink != nil {
		j.show(g.w.e, g.size)
		j.bar.at(g.offset)
	}
	if j.sink != nil {
		if g.offset > 0 {
			j.sink.tail = sha256.New()
		}
		return nil
	}
	if g.part == nil {
		if err := g.openPart(true); err != nil {
			return g.lost(err)
		}
	}
	// What lies behind is of another file.
	if info, err := g.part.Stat(); err != nil || info.Size() != g.offset {
		if err := g.part.Truncate(g.offset); err != nil {
			return g.lost(localError(err))
		}
	}
	g.sum = newFollower(g.part, g.offset, noGuard)
	if g.prefix != nil {
		g.sum.sum = g.prefix
	}
	g.sum.splitAt(g.offset)
	return nil
}

// lost is for an error here that makes what the box sends useless.
func (g *getting) lost(err error) error {
	if g.size-g.at > smallFile {
		g.w.stop()
	}
	return err
}

// block takes some of the file.
func (g *getting) block(buf *[]byte, n int) (kept bool, err error) {
	e := g.w.e
	p := (*buf)[:n]
	if g.at+int64(n) > g.size {
		return false, &connError{text: g.w.c.host + " sends more than it has promised"}
	}
	for rest := p; len(rest) > 0; {
		part := rest
		if e.limiter != nil {
			part = rest[:min(len(rest), e.chunk)]
			if err := e.allow(len(part)); err != nil {
				return false, err
			}
			g.w.c.alive.Store(time.Now().UnixNano()) // it is we who are slow
		}
		if err := g.write(part); err != nil {
			return false, g.lost(err)
		}
		rest = rest[len(part):]
	}
	if g.j.bar != nil {
		g.j.bar.add(n)
	}
	at := g.at - int64(n)
	switch {
	case g.sum == nil:
	case g.small:
		g.sum.add(p)
	default:
		g.w.progressed()
		g.sum.give(hashBlock{buf: buf, n: n, at: at})
		return true, nil
	}
	return false, nil
}

// write puts p behind what there is.
func (g *getting) write(p []byte) error {
	if s := g.j.sink; s != nil {
		n, err := s.w.Write(p)
		s.sum.Write(p[:n])
		if s.tail != nil {
			s.tail.Write(p[:n])
		}
		s.at += int64(n)
		g.at += int64(n)
		g.got += int64(n)
		if err != nil {
			return localError(err)
		}
		return nil
	}
	n, err := g.part.WriteAt(p, g.at)
	g.at += int64(n)
	g.got += int64(n)
	if err != nil {
		return localError(err)
	}
	return nil
}

// end is for what the box tells of what it has sent.
func (g *getting) end(f endFrame) error {
	g.told, g.ended = f, true
	return nil
}

// final is the get's last answer.
func (g *getting) final(_ *remoteCall, _ *remoteAnswer, err error) {
	j, w := g.j, g.w
	digest := ""
	if err == nil {
		digest, err = g.verify()
	}
	if err == nil && g.part != nil {
		err = g.take()
	}
	if err != nil && g.part != nil {
		if info, serr := g.part.Stat(); serr == nil && info.Size() == 0 {
			g.files.remove(partName(g.name)) // there is nothing in it to go on with
		}
	}
	g.release()
	if isConnError(err) {
		w.c.fail(err) // of no effect if it was the connection that failed
	}
	if err != nil && w.retriable(j, err) {
		w.ended(j, true)
		return
	}
	if errors.Is(err, errMismatch) && j.sink == nil {
		g.files.remove(partName(g.name))
	}
	j.finish(w.e, jobResult{err: err, bytes: g.got, size: g.size, sha256: digest})
	w.ended(j, false)
}

// verify compares what has come with what was sent. A file that is not the same
// begins anew: none of it can be trusted.
func (g *getting) verify() (string, error) {
	sent := g.at - g.offset
	if !g.ended || g.told.Size == nil || g.told.SHA256 == "" {
		return "", &connError{text: g.w.c.host + " ends a file without telling its digest"}
	}
	var whole, tail []byte
	if s := g.j.sink; s != nil {
		whole = s.sum.Sum(nil)
		if g.offset > 0 {
			tail = s.tail.Sum(nil)
		}
	} else {
		if !g.small {
			g.j.bar.phase("verifying")
		}
		var err error
		if whole, err = g.sum.finish(g.at); err != nil {
			return "", localError(err)
		}
		tail = g.sum.tail.Sum(nil)
	}
	if g.offset == 0 {
		tail = whole
	}
	if *g.told.Size == sent && g.at == g.size && g.told.SHA256 == hexText(tail) {
		return hexText(whole), nil
	}
	err := errorf("what arrived is not what the box sent (%w); get it again", errMismatch)
	if g.j.sink != nil {
		return "", err // written is written
	}
	if g.part != nil {
		g.part.Truncate(0)
	}
	return "", anewError{err}
}

// take gives the file its attributes and its name.
func (g *getting) take() error {
	if err := g.attributes(g.part); err != nil {
		return err
	}
	if err := g.files.rename(partName(g.name), g.name); err != nil {
		return localError(err)
	}
	return nil
}

// attributes sets what is wanted of mode and time; without that, a file that is
// replaced leaves its mode.
func (g *getting) attributes(f *os.File) error {
	j := g.j
	var mode fs.FileMode
	if j.setMode {
		m, err := strconv.ParseUint(g.mode, 8, 32)
		if err != nil {
			return &connError{text: fmt.Sprintf("%s tells the mode %s, which is none", g.w.c.host, shownText(g.mode))}
		}
		mode = fs.FileMode(m & 0o777)
	} else if info, err := g.files.stat(g.name); err == nil {
		mode = info.Mode().Perm()
	} else {
		mode = 0o666 &^ processUmask()
	}
	// A disk without permission bits, as FAT, refuses what nobody has asked for.
	if err := f.Chmod(mode); err != nil && j.setMode {
		return localError(err)
	}
	if j.setTime {
		ts, err := unix.TimeToTimespec(g.mtime)
		if err == nil {
			err = utimens(f, ts)
		}
		if err != nil {
			return localError(err)
		}
	}
	return nil
}

// processUmask is the umask as proc(5) tells it: umask(2) does so only by setting it,
// which other goroutines' files would feel.
var processUmask = sync.OnceValue(func() fs.FileMode {
	status, _ := os.ReadFile("/proc/self/status")
	_, rest, _ := cutText(string(status), "\nUmask:")
	line, _, _ := cutText(rest, "\n")
	if mask, err := strconv.ParseUint(strings.TrimSpace(line), 8, 32); err == nil {
		return fs.FileMode(mask)
	}
	return 0o022
})

// release lets go of what the get holds.
func (g *getting) release() {
	if g.sum != nil {
		g.sum.stop()
	}
	if g.part != nil {
		g.part.Close()
		g.part = nil
	}
}
