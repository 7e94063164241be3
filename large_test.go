package main

// Files past 2 and 4 GiB, by every way in. Where int and off_t have 32 bits this is where
// sizes and offsets break, so it is worth the most run for such a processor:
//
//	GOARCH=386 go test -run TestLargeFiles .
//
// The files are sparse and only their last bytes move.

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// largeTail stands at the end of a large file.
const largeTail = "the last bytes of it"

// largeFile makes a sparse file of size bytes that ends with largeTail.
func largeFile(t *testing.T, name string, size int64) {
	t.Helper()
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte(largeTail), size-int64(len(largeTail))); err != nil {
		t.Skipf("a file of %d bytes: %v", size, err)
	}
}

func TestLargeFiles(t *testing.T) {
	inBothJails(t, func(t *testing.T, openat2 bool) {
		b := newFTPBoxWith(t, realListen+"transfer.durable = false\n", "quota_bytes = \"100GiB\"\n", func(s *server) { s.jails.openat2 = openat2 })
		addr := b.serveReal(t)[0]
		for _, size := range []int64{3_000_000_000, 5_000_000_000} {
			name := fmt.Sprintf("f%d", size)
			largeFile(t, filepath.Join(b.home, name), size)
			at := size - int64(len(largeTail))

			c := b.dialReal(t, addr).login()
			c.cmd("TYPE I", "200 *")
			c.cmd("SIZE "+name, fmt.Sprintf("213 %d", size))
			c.send("MLST " + name + "\r\n")
			if _, text := c.reply(); !strings.Contains(text, fmt.Sprintf("size=%d;", size)) {
				t.Errorf("MLST: %s", text)
			}
			c.cmd(fmt.Sprintf("REST %d", at), "350 *")
			if got := c.fetch("RETR " + name); got != largeTail {
				t.Errorf("RETR from %d: %.100q", at, got)
			}
			c.cmd(fmt.Sprintf("RANG %d %d", at, at+2), "350 *")
			if got := c.fetch("RETR " + name); got != largeTail[:3] {
				t.Errorf("RETR of three bytes: %.100q", got)
			}
			c.cmd(fmt.Sprintf("RANG %d %d", at, size-1), "350 *")
			c.cmd("HASH "+name, fmt.Sprintf("213 SHA-256 %d-* %s %s", at, hexSum(largeTail), name))
			// All of it begins to come, by sendfile(2), whose count is a size_t.
			c.cmd("EPSV", "229 *")
			d := c.open()
			c.cmd("RETR "+name, "150 *")
			d.SetDeadline(time.Now().Add(replyTime))
			if n, err := io.CopyN(io.Discard, d, 64<<20); err != nil {
				t.Errorf("RETR from 0: %d bytes, %v", n, err)
			}
			d.Close()
			c.want("426 *")

			// What arrived of an upload is this long, and goes on in place.
			part := "part" + name
			largeFile(t, filepath.Join(b.home, part), size)
			if err := unix.Setxattr(filepath.Join(b.home, part), partialXattr, []byte{'1'}, 0); err != nil {
				t.Skip(err)
			}
			c.cmd("SIZE "+part, fmt.Sprintf("213 %d", size))
			c.cmd(fmt.Sprintf("REST %d", size), "350 *")
			if got := c.store("STOR "+part, "more"); !strings.HasPrefix(got, "226 ") {
				t.Errorf("STOR from %d: %s", size, got)
			}
			c.cmd("SIZE "+part, fmt.Sprintf("213 %d", size+4))

			f := b.dialReal(t, addr)
			f.want("220 *")
			frames := f.frames().enter()
			if got := frames.get(fmt.Sprintf(`{"do":"get","path":%q,"offset":%d}`, name, at)); got != largeTail {
				t.Errorf("get from %d: %.100q", at, got)
			}
			if o := frames.do(fmt.Sprintf(`{"do":"stat","path":%q}`, name), 213, ""); o.Size == nil || *o.Size != size {
				t.Errorf("stat: %s", o.raw)
			}
			if o := frames.do(fmt.Sprintf(`{"do":"hash","path":%q,"offset":%d}`, name, at), 213, ""); o.SHA256 != hexSum(largeTail) {
				t.Errorf("hash: %s", o.raw)
			}
			if o := frames.do(`{"do":"usage"}`, 213, ""); o.field("quota_bytes") != fmt.Sprint(int64(100)<<30) {
				t.Errorf("usage: %s", o.raw)
			}
		}
	})
}

// TestLargeFilesHere: the client's own files, below a directory and by a path.
func TestLargeFilesHere(t *testing.T) {
	dir := t.TempDir()
	largeFile(t, filepath.Join(dir, "f"), 3_000_000_000)
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	for name, l := range map[string]localFiles{"f": {root}, filepath.Join(dir, "f"): {}} {
		f, err := l.open(name, os.O_RDWR, 0)
		if err != nil {
			t.Error(err)
			continue
		}
		if _, err := f.WriteAt([]byte("x"), 3_000_000_000); err != nil {
			t.Error(err)
		}
		f.Close()
	}
}
