package main

// put and get where the trouble is on this machine, or the box says no: a full disk,
// files that cannot be read or change while they are, directories where files are
// expected, a quota hit in the middle of many files, input that makes one wait. The box is
// a real server; each ends with what the contract says, and the rest of the work is done.

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// verb runs a verb; words that begin with "box:" are on the server, those with "./" here.
func (w *faultWorld) verb(stdin io.Reader, words ...string) faultRun {
	w.t.Helper()
	_, port, _ := strings.Cut(w.addr, ":")
	for i, word := range words {
		if p, ok := strings.CutPrefix(word, "box:"); ok {
			words[i] = "ann@127.0.0.1:" + p
		} else if p, ok := strings.CutPrefix(word, "./"); ok {
			words[i] = w.here(p)
		}
	}
	return faultVerb(stdin, port, words...)
}

// wants compares how a verb ended; say is a part of what it says, one line unless it
// is empty.
func (r faultRun) wants(t *testing.T, code int, say string) {
	t.Helper()
	if r.code != code || !strings.Contains(r.errs, say) || (say != "") != (strings.Count(r.errs, "\n") == 1) {
		t.Errorf("%v; want exit code %d and one line with %q", r, code, say)
	}
}

// TestFaultsHere: one file, and something is in the way on either side.
func TestFaultsHere(t *testing.T) {
	w := newFaultWorld(t, "", "")
	w.write(w.here("f"), []byte("content"))
	w.write(w.here("dir/x"), []byte("x"))
	w.write(w.there("f"), []byte("stored"))
	w.write(w.there("dir/x"), []byte("x"))
	os.Mkdir(w.here("empty"), 0o755)
	before, stored := snapshot(t, w.dir), snapshot(t, w.b.home)
	for _, test := range []struct {
		words string
		code  int
		say   string
	}{
		{"put ./nope box:", exitFailed, "nope: no such file or directory here"},
		{"put ./nope/nope box:", exitFailed, "no such file or directory here"},
		{"put ./f/nope box:", exitFailed, "not a directory"},
		{"put ./dir box:", exitFailed, "is a directory; -r sends it"},
		{"put ./f box:dir", exitOK, ""},
		{"put ./f box:f/", exitFailed, "file of that name"},
		{"put ./f box:f/g", exitFailed, ""},
		{"put ./f box:nope/g", exitFailed, ""},
		{"put ./f ./dir/x box:f", exitFailed, "is not a directory on the box"},
		{"put - box:", exitUsage, "what is it to be called"},
		{"put ./f box:.berth-x", exitFailed, ""},
		{"get box:nope ./", exitFailed, "no such file"},
		{"get box:dir ./", exitFailed, "directory"},
		{"get box:f ./dir", exitOK, ""},
		{"get box:f ./nope/f", exitFailed, "no such file or directory here"},
		{"get box:f ./f/g", exitFailed, "not a directory"},
		{"get box:f box:dir/x ./f", exitFailed, "is not a directory here"},
		{"get box:nope* ./", exitFailed, "nope*"},
	} {
		r := w.verb(nil, strings.Fields(test.words)...)
		if r.code != test.code || !strings.Contains(r.errs, test.say) || test.code != exitOK && strings.Count(r.errs, "\n") != 1 {
			t.Errorf("%s: %v; want exit code %d and one line with %q", test.words, r, test.code, test.say)
		}
		os.Remove(w.here("dir/f"))
		os.Remove(w.there("dir/f"))
	}
	os.Chtimes(w.here("dir"), time.Time{}, time.Unix(1, 0))
	if got := snapshot(t, w.dir); withoutTimes(got) != withoutTimes(before) {
		t.Errorf("here are\n%s\nand were\n%s", got, before)
	}
	if got := snapshot(t, w.b.home); withoutTimes(got) != withoutTimes(stored) {
		t.Errorf("on the box are\n%s\nand were\n%s", got, stored)
	}
	w.ended()
}

// withoutTimes leaves the files of a snapshot with names and contents.
func withoutTimes(s string) string {
	var b strings.Builder
	for line := range strings.Lines(s) {
		name, rest, _ := strings.Cut(line, " ")
		b.WriteString(name)
		b.WriteString(rest[strings.LastIndexByte(rest[:strings.LastIndexByte(rest, '"')+1], ' ')+1:])
	}
	return b.String()
}

// TestFaultsRefused: wrong password, and users that may not.
func TestFaultsRefused(t *testing.T) {
	w := newFaultWorld(t, "", "permissions = [\"read\", \"list\"]\n")
	w.write(w.here("f"), []byte("content"))
	w.write(w.there("f"), []byte("stored"))
	w.b.user(t, "bob", "permissions = [\"write\"]\n")
	w.b.user(t, "eve", "permissions = []\n")
	w.b.srv.reload()
	w.verb(nil, "put", "./f", "box:g").wants(t, exitFailed, "may not write")
	w.verb(nil, "put", "./f", "bob@127.0.0.1:g").wants(t, exitOK, "")
	w.verb(nil, "get", "bob@127.0.0.1:f", "./g").wants(t, exitFailed, "may not read")
	w.verb(nil, "put", "./f", "eve@127.0.0.1:g").wants(t, exitFailed, "may not write")
	t.Setenv("BERTH_PASSWORD", "wrong")
	r := w.verb(nil, "get", "box:f", "./g")
	r.wants(t, exitFailed, "user or password is wrong")
	if _, err := os.Stat(w.here("g")); err == nil {
		t.Error("g was made")
	}
	nothingStaged(t, w.dir)
	w.ended()
}

// TestFaultsFullDisk: a get onto a disk that has no room, and onto one that has again.
func TestFaultsFullDisk(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to mount a small disk")
	}
	w := newFaultWorld(t, "", "")
	small := w.here("small")
	os.Mkdir(small, 0o755)
	if err := unix.Mount("tmpfs", small, "tmpfs", 0, "size=1m"); err != nil {
		t.Skip("cannot mount: ", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(small, 0); err != nil {
			t.Error(err) // something is open there still
		}
	})
	content := testBytes(3 << 20)
	w.store(content)
	w.write(filepath.Join(small, "f"), []byte("old"))
	r := w.verb(nil, "get", "box:f", "./small/f")
	r.wants(t, exitFailed, "disk here is full")
	if got, _ := os.ReadFile(filepath.Join(small, "f")); string(got) != "old" {
		t.Errorf("the old file has %d bytes", len(got))
	}
	if err := unix.Mount("tmpfs", small, "", unix.MS_REMOUNT, "size=8m"); err != nil {
		t.Fatal(err)
	}
	r = w.verb(nil, "get", "-c", "box:f", "./small/f")
	got, _ := os.ReadFile(filepath.Join(small, "f"))
	if r.code != exitOK || !bytes.Equal(got, content) || !strings.Contains(r.out, "resumed at") {
		t.Errorf("-c: %v, %d bytes", r, len(got))
	}
	if full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0); err == nil {
		// Standard output that takes nothing.
		inv := &invocation{verb: findVerb("get"), stdin: strings.NewReader(""), stdout: full, stderr: new(syncBuffer), ctx: t.Context()}
		_, port, _ := strings.Cut(w.addr, ":")
		if err := inv.read([]string{"ann@127.0.0.1:f", "-", "-p", port}); err != nil {
			t.Fatal(err)
		}
		err := runClient(inv)
		if exitCode(err) != exitFailed {
			t.Errorf("onto /dev/full: %v, %v", err, inv.stderr)
		}
		full.Close()
	}
	nothingStaged(t, w.dir)
	w.ended()
}

// TestFaultsUnreadable: one of several files cannot be opened; for root, who may read
// everything, it is a socket.
func TestFaultsUnreadable(t *testing.T) {
	w := newFaultWorld(t, "", "")
	for _, name := range []string{"a", "b", "c"} {
		w.write(w.here(name), []byte(name))
	}
	os.Chmod(w.here("b"), 0)
	why := "b: permission denied here"
	if os.Getuid() == 0 {
		os.Remove(w.here("b"))
		ln, err := net.Listen("unix", w.here("b"))
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		why = "b: no such device or address"
	}
	r := w.verb(nil, "put", "./a", "./b", "./c", "box:")
	r.wants(t, exitFailed, why)
	if got := w.b.content(t, "a") + w.b.content(t, "c"); got != "ac" {
		t.Errorf("the others: %q", got)
	}
	w.ended()
}

// TestFaultsChanging: a file becomes shorter or longer while it is sent. The proxy's look
// is the moment: half of it has passed.
func TestFaultsChanging(t *testing.T) {
	for _, to := range []int64{100, 40 << 20} {
		t.Run(fmt.Sprint(to), func(t *testing.T) {
			w := newFaultWorld(t, "", "")
			content := testBytes(16 << 20)
			w.write(w.here("f"), content)
			w.write(w.here("g"), []byte("another"))
			w.store([]byte("old"))
			var once sync.Once
			watch := &nameWatch{file: w.there("f"), old: []byte("old"), new: content, partial: true}
			p := newFaultProxy(t, w.addr, always(fault{}), func(p *faultProxy) {
				p.look = func() {
					watch.look()
					if up, _ := p.passed(); up > 1<<20 {
						once.Do(func() { os.Truncate(w.here("f"), to) })
					}
				}
			})
			r := faultVerb(nil, p.port(), "put", w.here("f"), w.here("g"), "ann@127.0.0.1:")
			watch.look()
			p.close()
			got, _ := os.ReadFile(w.there("f"))
			if got, _ := os.ReadFile(w.there("g")); string(got) != "another" {
				t.Errorf("the other file has %q", got)
			}
			switch {
			case to > int64(len(content)): // what was there at the beginning is what is sent
				if r.code != exitOK || !bytes.Equal(got, content) {
					t.Errorf("%v, %d bytes", r, len(got))
				}
			case r.code == exitOK: // begun anew, and short from then on
				if !bytes.Equal(got, content[:to]) {
					t.Errorf("%v, %d bytes", r, len(got))
				}
			default:
				if string(got) != "old" || !strings.Contains(r.errs, "shorter") {
					t.Errorf("%v, %d bytes", r, len(got))
				}
			}
			w.settled()
		})
	}
}

// TestFaultsQuota: there is room for some of a thousand files. Those that fit are there,
// the others are said, and so does the exit code.
func TestFaultsQuota(t *testing.T) {
	const files, fit = 1000, 600
	w := newFaultWorld(t, "", fmt.Sprintf("quota_files = %d\n", fit+1))
	words := []string{"put"}
	for i := range files {
		name := fmt.Sprintf("%04d", i)
		w.write(w.here(name), []byte(name))
		words = append(words, "./"+name)
	}
	r := w.verb(nil, append(words, "box:to/")...)
	entries, _ := os.ReadDir(w.there("to"))
	if lines := strings.Count(r.errs, "\n"); r.code != exitFailed || len(entries) != fit || strings.Count(r.out, "\n") < fit || lines < files-fit || lines > files-fit+2 {
		t.Errorf("exit code %d, %d files, %d lines of %d that failed, %.300q", r.code, len(entries), lines, files-fit, r.errs)
	}
	for _, e := range entries {
		if got := w.b.content(t, "to/"+e.Name()); got != e.Name() {
			t.Errorf("%s has %q", e.Name(), got)
		}
	}
	w.settled()
}

// TestFaultsTwoGets: two of the same name at once; one of them is told, and the file is
// right.
func TestFaultsTwoGets(t *testing.T) {
	w := newFaultWorld(t, "", "")
	content := testBytes(2 << 20)
	w.store(content)
	var runs [2]faultRun
	// The second begins when the first is in the middle.
	middle := make(chan struct{})
	var once sync.Once
	p := newFaultProxy(t, w.addr, always(fault{}), func(p *faultProxy) {
		p.look = func() {
			if _, down := p.passed(); down > 300<<10 {
				once.Do(func() {
					close(middle)
					runs[1] = w.verb(nil, "get", "box:f", "./f")
				})
			}
		}
	})
	runs[0] = faultVerb(nil, p.port(), "get", "ann@127.0.0.1:f", w.here("f"))
	<-middle
	p.close()
	if runs[0].code != exitOK { // it has sent its request first, and opened its file last
		runs[0], runs[1] = runs[1], runs[0]
	}
	runs[0].wants(t, exitOK, "")
	runs[1].wants(t, exitFailed, "another berth is fetching it")
	if got, _ := os.ReadFile(w.here("f")); !bytes.Equal(got, content) {
		t.Errorf("%d bytes", len(got))
	}
	nothingStaged(t, w.dir)
	w.ended()
}

// A slowReader gives a few bytes, then waits until more may come.
type slowReader struct {
	pieces []string
	more   chan struct{}
}

func (s *slowReader) Read(p []byte) (int, error) {
	if len(s.pieces) == 0 {
		return 0, io.EOF
	}
	<-s.more
	n := copy(p, s.pieces[0])
	s.pieces = s.pieces[1:]
	return n, nil
}

// TestFaultsSlowInput: standard input pauses for longer than the server waits for
// data; the client's P keep the put alive.
func TestFaultsSlowInput(t *testing.T) {
	w := newFaultWorld(t, "", "")
	inTime(t, func() error {
		in := &slowReader{pieces: []string{"one ", "two"}, more: make(chan struct{}, 2)}
		in.more <- struct{}{}
		p := newFaultProxy(t, w.addr, always(fault{}))
		go func() {
			time.Sleep(1300 * time.Millisecond) // data_timeout is 1s: this is about real time
			in.more <- struct{}{}
		}()
		r := faultVerb(in, p.port(), "put", "-", "ann@127.0.0.1:f", "--timeout", "900ms")
		p.close()
		if got, _ := os.ReadFile(w.there("f")); r.code != exitOK || r.errs != "" || string(got) != "one two" || p.count() != 1 {
			return fmt.Errorf("%v: %q over %d connections", r, got, p.count())
		}
		return nil
	})
	w.settled()
}

// inTime does what needs a machine that is never late by much. A busy one is so now and then; where what is tested does
// not work, it goes wrong each time.
func inTime(t *testing.T, do func() error) {
	t.Helper()
	var err error
	for range 5 {
		if err = do(); err == nil {
			return
		}
	}
	t.Error(err)
}

// A slowWriter takes its first piece after a while.
type slowWriter struct {
	syncBuffer
	once sync.Once
}

func (s *slowWriter) Write(p []byte) (int, error) {
	s.once.Do(func() { time.Sleep(1500 * time.Millisecond) }) // --timeout is 1s: this is about real time
	return s.syncBuffer.Write(p)
}

// TestFaultsSlowOutput: who is slow here is no reason to give up the box.
func TestFaultsSlowOutput(t *testing.T) {
	w := newFaultWorld(t, "", "")
	content := testBytes(6 << 20)
	w.store(content)
	inTime(t, func() error {
		p := newFaultProxy(t, w.addr, always(fault{}))
		out, errs := &slowWriter{}, &syncBuffer{}
		inv := &invocation{verb: findVerb("get"), stdin: strings.NewReader(""), stdout: out, stderr: errs, ctx: t.Context(), pause: time.Millisecond}
		err := inv.read([]string{"ann@127.0.0.1:f", "-", "-q", "-p", p.port(), "--timeout", "1s"})
		if err == nil {
			err = runClient(inv)
		}
		p.close()
		if err != nil || out.String() != string(content) || p.count() != 1 {
			return fmt.Errorf("%v, %d bytes over %d connections, %s", err, len(out.String()), p.count(), errs)
		}
		return nil
	})
	w.ended()
}

// TestFaultsWaitingInput: standard input says nothing, and something else has to be heard:
// that the box refuses, that the connection is lost, SIGINT.
func TestFaultsWaitingInput(t *testing.T) {
	w := newFaultWorld(t, "", "quota_bytes = \"1MiB\"\n")
	t.Run("refused", func(t *testing.T) {
		in := &slowReader{pieces: []string{strings.Repeat("x", 200<<10), strings.Repeat("x", 200<<10), strings.Repeat("x", 200<<10), strings.Repeat("x", 200<<10), strings.Repeat("x", 200<<10), strings.Repeat("x", 200<<10), "more"}, more: make(chan struct{}, 9)}
		for range 6 {
			in.more <- struct{}{}
		}
		defer close(in.more)
		r := w.verb(in, "put", "-", "box:f")
		if r.code != exitFailed || !strings.Contains(r.errs, "quota") || r.took > 30*time.Second {
			t.Errorf("%v", r)
		}
	})
	t.Run("interrupted", func(t *testing.T) {
		in := &slowReader{pieces: []string{"one", "two"}, more: make(chan struct{}, 9)}
		in.more <- struct{}{}
		defer close(in.more)
		var once sync.Once // a second one ends the process
		p := newFaultProxy(t, w.addr, always(fault{}), func(p *faultProxy) {
			p.look = func() {
				if up, _ := p.passed(); up > 150 {
					once.Do(func() { syscall.Kill(os.Getpid(), syscall.SIGINT) })
				}
			}
		})
		r := faultVerb(in, p.port(), "put", "-", "ann@127.0.0.1:f")
		p.close()
		if r.code != 130 || r.took > 30*time.Second {
			t.Errorf("%v", r)
		}
	})
	w.ended()
}
