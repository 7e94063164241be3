package main

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestDigestIsKept: a file is read once for its SHA-256 as long as it has not changed.
// That it is not read again shows where its bytes are others and nothing else is.
func TestDigestIsKept(t *testing.T) {
	inBubble := func(config string, fn func(b *ftpBox, f *ftpClient)) {
		synctest.Test(t, func(t *testing.T) {
			b := newFTPBox(t, config, "")
			f := b.dial(t).login()
			fn(b, f)
			f.bare.Close()
			<-f.over
		})
	}
	sum := func(s string) string { h := sha256.Sum256([]byte(s)); return hex.EncodeToString(h[:]) }
	// swap changes the bytes and has size, time and inode stay.
	swap := func(file, content string) {
		info, err := os.Stat(file)
		if err != nil {
			t.Fatal(err)
		}
		h, err := os.OpenFile(file, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		h.WriteString(content)
		h.Close()
		if err := os.Chtimes(file, time.Time{}, info.ModTime()); err != nil {
			t.Fatal(err)
		}
	}
	hash := func(f *ftpClient, want string) {
		t.Helper()
		f.cmd("HASH a", "213 SHA-256 0-4 "+want+" a")
		f.cmd("XSHA256 a", "250 "+strings.ToUpper(want))
	}

	inBubble("", func(b *ftpBox, f *ftpClient) {
		f.store("STOR a", "first")
		f.cmd("OPTS HASH SHA-256", "200 *")
		hash(f, sum("first"))
		file := filepath.Join(b.home, "a")
		swap(file, "swapd")
		hash(f, sum("first")) // not read
		f.cmd("MFMT 20010203040506 a", "213 *")
		hash(f, sum("first")) // the time is another, and berth itself changed it
		f.cmd("RNFR a", "350 *")
		f.cmd("RNTO b", "250 *")
		f.cmd("RNFR b", "350 *")
		f.cmd("RNTO a", "250 *")
		hash(f, sum("first"))
		if err := os.Chtimes(file, time.Time{}, time.Unix(1e9, 1)); err != nil {
			t.Fatal(err)
		}
		hash(f, sum("swapd")) // somebody else changed it
		f.store("STOR a", "other")
		hash(f, sum("other"))
		f.store("APPE a", "-and more")
		f.cmd("HASH a", "213 SHA-256 0-13 "+sum("other-and more")+" a")
		if !strings.Contains(b.log.String(), "sha256="+sum("other")) {
			t.Error("the log does not have the digest")
		}
	})
	inBubble("transfer.digest = \"always\"\n", func(b *ftpBox, f *ftpClient) {
		if got := f.store("STOR a", "first"); got != "226 Transfer complete. SHA-256 "+sum("first") {
			t.Error(got)
		}
		swap(filepath.Join(b.home, "a"), "swapd")
		f.cmd("OPTS HASH SHA-256", "200 *")
		hash(f, sum("first")) // never read at all
		f.cmd("REST 3", "350 *")
		if got := f.store("STOR a", "XY"); got != "226 Transfer complete. SHA-256 "+sum("swaXY") {
			t.Error(got) // what was there is part of the file
		}
		if !strings.Contains(b.log.String(), "sha256="+sum("swaXY")) {
			t.Error("the log does not have the digest")
		}
	})
}

// TestOnUploadEndToEnd: the command of a completed upload finds it in its environment,
// and none runs for one that was cut short.
func TestOnUploadEndToEnd(t *testing.T) {
	dir := t.TempDir() // outside of the home: exec.write opens it
	out := filepath.Join(dir, "out")
	script := `printf "%s|" "$PWD" "$BERTH_USER" "$BERTH_PATH" "$BERTH_SIZE" "$BERTH_PROTOCOL" "$(cat "$BERTH_FILE")" >> ` + out
	b := newFTPBox(t, realListen+fmt.Sprintf("exec.write = [%q]\n", dir)+"commands.note.run = [\"/bin/sh\", \"-c\", '"+script+"']\n", "on_upload = \"note\"\n")
	f := b.dialReal(t, b.serveReal(t)[0]).login()
	f.cmd("MKD d", "257 *")
	f.cmd("ALLO 100", "200 *")
	f.store("STOR cut", "short")
	f.store("STOR d/a b'c", "content")
	want := strings.Join([]string{b.home, "ann", "/d/a b'c", "7", "ftp", "content"}, "|") + "|"
	waitUntil(t, "the command has run", func() bool {
		got, _ := os.ReadFile(out)
		return len(got) >= len(want)
	})
	if got, _ := os.ReadFile(out); string(got) != want {
		t.Errorf("the command found %q; want %q", got, want)
	}
}

// TestRemoveDirectoryOfPartials: partials that only the server sees keep no directory
// alive, however many there are: more than there are locks for names.
func TestRemoveDirectoryOfPartials(t *testing.T) {
	inBothJails(t, func(t *testing.T, openat2 bool) {
		home := t.TempDir()
		j := enterTestJail(t, openat2, home, nil)
		if err := j.mkdir("/d"); err != nil {
			t.Fatal(err)
		}
		for i := range 3 * nameLocks {
			if err := os.WriteFile(filepath.Join(home, "d", partialName(string(rune('a'+i)))), []byte("part"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := j.rmdir("/d"); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(home, "f"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := j.mkdir("/e"); err != nil { // the locks were given back
			t.Fatal(err)
		}
		if err := j.remove("/f"); err != nil {
			t.Fatal(err)
		}
	})
}
