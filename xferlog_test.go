package main

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestTransferLog: a line for each upload, download and deletion, by FTP and by frames.
func TestTransferLog(t *testing.T) {
	file := filepath.Join(t.TempDir(), "xferlog")
	inBox(t, fmt.Sprintf("log.transfers = %q\ntransfer.ascii = true\n", file), "", func(t *testing.T, b *ftpBox) {
		start := time.Now().Format(time.ANSIC)
		ftp := b.dial(t).login()
		b.dialFrames(t).enter()
		ftp.store("STOR a b", "12345")
		time.Sleep(3 * time.Hour)
		ftp = b.dial(t).login()
		ftp.fetch("RETR a b")
		ftp.cmd("TYPE A", "200 *")
		ftp.store("APPE a b", "1\r\n")
		ftp.cmd("MKD d", "257 *")
		ftp.cmd("DELE a b", "250 *")
		ftp.cmd("DELE a b", "550 *")
		frames := b.dialFrames(t).enter()
		frames.put("d/\u00e9\t\u2028x", "123", "")
		frames.cutOff("d/cut", "12", "")
		frames.fetchFile("d/\u00e9\t\u2028x")
		frames.do(`{"do":"remove","path":"d","recursive":true}`, 250, "")
		want := `T0 1 127.0.0.1 5 /a_b b _ i r ann ftp 0 * c
T3 1 127.0.0.1 5 /a_b b _ o r ann ftp 0 * c
T3 1 127.0.0.1 2 /a_b a _ i r ann ftp 0 * c
T3 0 127.0.0.1 7 /a_b b _ d r ann ftp 0 * c
T3 1 127.0.0.1 3 /d/é__x b _ i r ann ftp 0 * c
T3 1 127.0.0.1 2 /d/cut b _ i r ann ftp 0 * i
T3 1 127.0.0.1 3 /d/é__x b _ o r ann ftp 0 * c
T3 0 127.0.0.1 2 /d/cut b _ d r ann ftp 0 * c
T3 0 127.0.0.1 3 /d/é__x b _ d r ann ftp 0 * c
`
		got, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		want = strings.NewReplacer("T0", start, "T3", time.Now().Format(time.ANSIC)).Replace(want)
		if string(got) != want {
			t.Errorf("got:\n%swant:\n%s", got, want)
		}
		if st, err := os.Stat(file); err != nil || st.Mode().Perm() != 0o640 {
			t.Errorf("%v, %v", st.Mode(), err)
		}
		for _, want := range []string{
			`msg="directory made" session=3 user=ann addr=127.0.0.1 proto=ftp verb=MKD path=/d result=ok` + "\n",
			`msg=deleted session=3 user=ann addr=127.0.0.1 proto=ftp verb=DELE path="/a b" bytes=7 result=ok` + "\n",
			`msg="tree removed" session=4 user=ann addr=127.0.0.1 proto=frames verb=remove path=/d files=2 directories=1 bytes=5 dur=0s result=ok` + "\n",
		} {
			if n := strings.Count(b.log.String(), want); n != 1 {
				t.Errorf("%d lines %s", n, want)
			}
		}
	})
}

// transferLogLine has one line written, and returns those that the file has then.
func transferLogLine(t *testing.T, l *transferLog, path, name string) []string {
	t.Helper()
	l.add(transferEvent{time: time.Now(), host: "192.0.2.1", path: name, direction: 'i', user: "ann", complete: true})
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
}

// TestTransferLogRotation: logrotate moves the file away, or deletes it, and tells nobody.
func TestTransferLogRotation(t *testing.T) {
	path := filepath.Join(t.TempDir(), "xferlog")
	var log syncBuffer
	l := newTransferLog(path, testLog(&log))
	for i, rotate := range []func() error{
		func() error { return nil },
		func() error { return os.Rename(path, path+".1") },
		func() error { return os.Remove(path) },
		func() error { return os.WriteFile(path+".new", nil, 0o640) },
		func() error { return os.Rename(path+".new", path) },
	} {
		if err := rotate(); err != nil {
			t.Fatal(err)
		}
		lines := transferLogLine(t, l, path, fmt.Sprintf("/%d", i))
		if want := map[int]int{3: 2}[i]; len(lines) != max(want, 1) || !strings.Contains(lines[len(lines)-1], fmt.Sprintf(" /%d ", i)) {
			t.Errorf("%d: %q", i, lines)
		}
	}
	if log.String() != "" {
		t.Error(log.String())
	}
}

// TestTransferLogPipe: what is no file is told, and waits for no reader.
func TestTransferLogPipe(t *testing.T) {
	path := filepath.Join(t.TempDir(), "xferlog")
	if err := unix.Mkfifo(path, 0o640); err != nil {
		t.Fatal(err)
	}
	var log syncBuffer
	opened := make(chan struct{})
	go func() {
		newTransferLog(path, testLog(&log)).add(transferEvent{direction: 'o'})
		close(opened)
	}()
	select {
	case <-opened:
	case <-time.After(replyTime):
		t.Fatal("it waits for a reader")
	}
	if got := log.String(); strings.Count(got, "transfer log cannot be written") != 1 {
		t.Error(got)
	}
}

// TestTransferLogTrouble: a full disk, and a directory that is not there, are told once,
// cost lines, and nothing else. No line is made of two.
func TestTransferLogTrouble(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "log", "xferlog")
	var log syncBuffer
	l := newTransferLog(path, testLog(&log))
	for range 3 {
		l.add(transferEvent{direction: 'o'})
	}
	if got := log.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, `msg="transfer log cannot be written" path=`+path+` error="open`) {
		t.Error(got)
	}
	if err := os.Mkdir(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	// A disk of one page, of which half a line is left.
	if err := unix.Mount("tmpfs", filepath.Dir(path), "tmpfs", 0, "size=4k"); err != nil {
		diskMissing(t, "tmpfs: %v", err)
	}
	defer unix.Unmount(filepath.Dir(path), unix.MNT_DETACH)
	if err := os.WriteFile(path, []byte(strings.Repeat("x", 4096-40)+"\n"), 0o640); err != nil {
		t.Fatal(err)
	}
	l.wrong = false // or this would be the same trouble, of which the operator knows
	for range 3 {
		transferLogLine(t, l, path, "/lost")
	}
	if got := log.String(); strings.Count(got, "cannot be written") != 2 || !strings.Contains(got, "no space left") {
		t.Error(got)
	}
	if err := unix.Mount("tmpfs", filepath.Dir(path), "", unix.MS_REMOUNT, "size=1m"); err != nil {
		t.Fatal(err)
	}
	lines := transferLogLine(t, l, path, "/kept")
	if len(lines) != 3 || !strings.Contains(lines[2], " /kept b _ i r ann ftp 0 * c") {
		t.Errorf("%d lines, the last %q", len(lines), lines[len(lines)-1])
	}
	if got := log.String(); strings.Count(got, "\n") != 3 || !strings.Contains(got, `msg="transfer log written again" path=`+path+` lost=6`) {
		t.Error(got)
	}
}

func testLog(w io.Writer) *slog.Logger { return slog.New(slog.NewTextHandler(w, nil)) }
