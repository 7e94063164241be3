package main

// A second opinion on the protocol: the same work over plain and both kinds of TLS by
// a client library that others wrote. A file of its own because it alone needs a module
// that berth itself does not.

import (
	"bytes"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jlaffaye/ftp"
)

func TestClientLibrary(t *testing.T) {
	b := newFTPBox(t, strings.Replace(realListen, "listen = {", "listen = { tls = [\"127.0.0.1:0\"],", 1), "")
	addrs := b.serveReal(t)
	for _, test := range []struct {
		name string
		addr net.Addr
		opts []ftp.DialOption
	}{
		{"plain", addrs[0], nil},
		{"plain without EPSV and MLSD", addrs[0], []ftp.DialOption{ftp.DialWithDisabledEPSV(true), ftp.DialWithDisabledMLSD(true)}},
		{"explicit TLS", addrs[0], []ftp.DialOption{ftp.DialWithExplicitTLS(clientTLS())}},
		{"implicit TLS", addrs[1], []ftp.DialOption{ftp.DialWithTLS(clientTLS())}},
	} {
		t.Run(test.name, func(t *testing.T) {
			c, err := ftp.Dial(test.addr.String(), append(test.opts, ftp.DialWithTimeout(replyTime))...)
			if err != nil {
				t.Fatal(err)
			}
			exerciseLibrary(t, c)
		})
	}
}

func exerciseLibrary(t *testing.T, c *ftp.ServerConn) {
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	read := func(r *ftp.Response, err error) string {
		t.Helper()
		must(err)
		text, err := io.ReadAll(r)
		must(err)
		must(r.Close())
		return string(text)
	}
	must(c.Login("ann", "secret"))
	must(c.MakeDir("tree"))
	must(c.ChangeDir("tree"))
	if dir, err := c.CurrentDir(); err != nil || dir != "/tree" {
		t.Fatalf("%q, %v", dir, err)
	}
	must(c.Stor("a file", strings.NewReader("0123456789")))
	must(c.StorFrom("a file", strings.NewReader("xyz"), 5))
	must(c.Append("a file", strings.NewReader("+")))
	if got := read(c.Retr("a file")); got != "01234xyz+" {
		t.Errorf("after StorFrom and Append: %q", got)
	}
	if got := read(c.RetrFrom("a file", 5)); got != "xyz+" {
		t.Errorf("RetrFrom: %q", got)
	}
	if n, err := c.FileSize("a file"); err != nil || n != 9 {
		t.Errorf("FileSize: %d, %v", n, err)
	}
	big := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	must(c.Stor("big", bytes.NewReader(big)))
	if got := read(c.Retr("big")); got != string(big) {
		t.Errorf("big: %d bytes of %d", len(got), len(big))
	}
	when := time.Date(2001, 2, 3, 4, 5, 6, 0, time.UTC)
	if c.IsSetTimeSupported() {
		must(c.SetTime("a file", when))
		if got, err := c.GetTime("a file"); err != nil || !got.Equal(when) {
			t.Errorf("GetTime: %v, %v", got, err)
		}
	} else {
		t.Error("the library finds no way to set times")
	}
	entries, err := c.List("")
	must(err)
	entries = slices.DeleteFunc(entries, func(e *ftp.Entry) bool { return e.Name == "." }) // MLSD's cdir
	if len(entries) != 2 || entries[0].Name != "a file" || entries[0].Size != 9 || entries[0].Type != ftp.EntryTypeFile ||
		entries[0].Time.Year() != 2001 || entries[1].Name != "big" {
		t.Errorf("List: %+v", entries)
	}
	names, err := c.NameList("")
	must(err)
	if !slices.Equal(names, []string{"a file", "big"}) {
		t.Errorf("NameList: %q", names)
	}
	must(c.Rename("big", "bigger"))
	must(c.Delete("bigger"))
	must(c.MakeDir("deep"))
	must(c.MakeDir("deep/er"))
	must(c.Stor("deep/er/x", strings.NewReader("")))
	must(c.ChangeDirToParent())
	must(c.RemoveDirRecur("tree"))
	if err := c.ChangeDir("tree"); err == nil {
		t.Error("RemoveDirRecur left the directory")
	}
	must(c.NoOp())
	must(c.Quit())
}
