package main

// The parts of the engine that can be looked at without a connection: names of files that
// are being fetched, standard input that is remembered, what is worth another try and
// how long the pauses are. Files that move are in client_faults_test.go.

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"
)

func TestPartName(t *testing.T) {
	long := strings.Repeat("n", maxName)
	for name, want := range map[string]string{
		"f":                 ".berth-get-f",
		"/a/b/f":            "/a/b/.berth-get-f",
		"d/" + long[:244]:   "d/.berth-get-" + long[:244],
		"d/" + long[:245]:   "d/.berth-get-" + hexSum(long[:245]),
		"d/" + long:         "d/.berth-get-" + hexSum(long),
		"d/../f":            "d/../.berth-get-f",
		"with\nodd\x1bname": ".berth-get-with\nodd\x1bname",
	} {
		got := partName(name)
		if got != want || len(filepath.Base(got)) > maxName || filepath.Dir(got) != filepath.Dir(name) && !strings.Contains(name, "..") {
			t.Errorf("%q: %q; want %q", name, got, want)
		}
	}
}

// TestPutStream: whatever its size and however it is read, what was read is known up to
// any place of the last replaySize bytes, and can be sent again from there.
func TestPutStream(t *testing.T) {
	content := testBytes(replaySize + replaySize/2 + 12345)
	s := &putStream{r: iotest.OneByteReader(bytes.NewReader(content[:100])), sum: sha256.New()}
	s.r = io.MultiReader(s.r, bytes.NewReader(content[100:]))
	buf := make([]byte, copyBuffer)
	read := 0
	for {
		n, err := s.read(buf, nil, nil)
		if !bytes.Equal(buf[:n], content[read:read+n]) {
			t.Fatalf("%d bytes at %d are others", n, read)
		}
		read += n
		for _, at := range []int64{0, s.start - 1, s.start, (s.start + s.at) / 2, s.at, s.at + 1} {
			if read%31 != 0 && err == nil { // now and then: digests of megabytes
				break
			}
			sum, ok := s.upTo(at)
			if want := at >= s.start && at <= s.at; ok != want {
				t.Fatalf("up to %d of %d to %d: %v", at, s.start, s.at, ok)
			}
			if ok && fmt.Sprintf("%x", sum.Sum(nil)) != hexSum(content[:at]) {
				t.Fatalf("the digest of %d bytes is another", at)
			}
		}
		if int64(len(s.last)) != s.at-s.start || len(s.last) > replaySize+replaySize/4+copyBuffer {
			t.Fatalf("%d bytes are kept of %d to %d", len(s.last), s.start, s.at)
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if read != len(content) || s.start == 0 {
		t.Errorf("%d bytes of %d, %d forgotten", read, len(content), s.start)
	}
}

// TestPutStreamGivenUp: a read that nobody waits for any more loses nothing.
func TestPutStreamGivenUp(t *testing.T) {
	r, w := io.Pipe()
	s := &putStream{r: r, sum: sha256.New()}
	over := make(chan struct{})
	close(over)
	buf := make([]byte, 10)
	if n, err := s.read(buf, over, nil); n != 0 || err != errGivenUp {
		t.Fatal(n, err)
	}
	go func() {
		io.WriteString(w, "more than ten bytes")
		w.CloseWithError(errors.New("broken"))
	}()
	var got []byte
	for {
		n, err := s.read(buf, nil, nil)
		got = append(got, buf[:n]...)
		if err != nil {
			if string(got) != "more than ten bytes" || err.Error() != "broken" || s.at != 19 {
				t.Errorf("%q, %v, %d", got, err, s.at)
			}
			return
		}
	}
}

// TestRetriable: which errors are worth another try.
func TestRetriable(t *testing.T) {
	refusal := func(reason string) error { return &remoteRefusal{remoteAnswer{Code: 450, Reason: reason}} }
	lost := lostError("box", io.EOF)
	for _, test := range []struct {
		err   error
		retry time.Duration
		tries int
		want  bool
		again bool
	}{
		{err: lost, retry: time.Minute, want: true, again: true},
		{err: fmt.Errorf("f: %w", lost), retry: time.Minute, want: true, again: true},
		{err: lost, again: true},
		{err: errInterrupted, retry: time.Minute},
		{err: usageErr("no"), retry: time.Minute},
		{err: refusal("quota"), retry: time.Minute},
		{err: refusal("busy"), retry: time.Minute},
		{err: refusal("cancelled"), retry: time.Minute, want: true},
		{err: anewError{errMismatch}, want: true},
		{err: anewError{errMismatch}, tries: maxTries - 1},
		{err: localError(syscall.ENOSPC), retry: time.Minute},
		{err: errMismatch, retry: time.Minute},
	} {
		e := newEngine(t.Context(), engineOptions{retry: test.retry}, nil, nil)
		j := &transferJob{tries: test.tries}
		if got := (&worker{e: e}).retriable(j, test.err); got != test.want || j.again != test.again {
			t.Errorf("%v after %d tries: %v, again %v", test.err, test.tries, got, j.again)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	e := newEngine(ctx, engineOptions{retry: time.Minute}, nil, nil)
	if (&worker{e: e}).retriable(&transferJob{}, lost) {
		t.Error("after the end it tries again")
	}
}

// TestBackOff: pauses double up to lastPause, each between half and one and a half of
// itself, and end when --retry is over; progress begins anew.
func TestBackOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &worker{e: newEngine(t.Context(), engineOptions{retry: defaultRetry}, nil, nil)}
		began := time.Now()
		want := firstPause
		for i := 0; ; i++ {
			before := time.Now()
			if !w.wait() {
				break
			}
			if took := time.Since(before); took < want/2 || took > want*3/2 {
				t.Errorf("pause %d took %v; want about %v", i, took, want)
			}
			want = min(2*want, lastPause)
			if i == 2 {
				w.progressed()
				want, began = firstPause, time.Now()
			}
		}
		if all := time.Since(began); all < defaultRetry || all > defaultRetry+2*lastPause {
			t.Errorf("it ended after %v", all)
		}
	})
}

// TestLocalErrors: what is wrong here is said in words, and its kind is still known.
func TestLocalErrors(t *testing.T) {
	for _, test := range []struct {
		err  error
		want string
		kind error
	}{
		{&fs.PathError{Op: "write", Path: "/x", Err: syscall.ENOSPC}, "the disk here is full; make room, then go on with -c", syscall.ENOSPC},
		{&fs.PathError{Op: "open", Path: "/x", Err: syscall.ENOENT}, "no such file or directory here", fs.ErrNotExist},
		{&fs.PathError{Op: "open", Path: "/x", Err: syscall.EACCES}, "permission denied here", fs.ErrPermission},
		{&os.LinkError{Op: "rename", Old: "/x", New: "/y", Err: syscall.EISDIR}, "there is a directory of that name here", syscall.EISDIR},
		{&fs.PathError{Op: "read", Path: "/x", Err: syscall.EIO}, "input/output error", syscall.EIO},
		{io.ErrUnexpectedEOF, "unexpected EOF", io.ErrUnexpectedEOF},
	} {
		err := localError(test.err)
		if err.Error() != test.want || !errors.Is(err, test.kind) || exitCode(err) != exitFailed {
			t.Errorf("%v: %q; want %q", test.err, err, test.want)
		}
	}
}
