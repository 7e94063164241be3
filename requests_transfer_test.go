package main

// put and get, seen from outside: one life cycle with STOR and RETR, so what is kept of
// an upload, what may be continued and what the ledger says must be the same whichever
// front end asks; digests, ranges, files that change meanwhile, limits, and what is told
// to log and metrics. All sizes over all kinds of connection are in framed_test.go.

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// partial is what stat tells of one; "" for none.
func (f *frameClient) partial(name string) string {
	f.t.Helper()
	return f.do(`{"do":"stat","path":`+quotedJSON(name)+`}`, 213, "").field("partial")
}

func partialOf(content string) string {
	return fmt.Sprintf(`{"size":%d,"sha256":"%s"}`, len(content), hexSum(content))
}

// cutOff sends the beginning of a put and takes it back.
func (f *frameClient) cutOff(name, data, more string) {
	f.t.Helper()
	f.frame(frameRequest, fmt.Sprintf(`{"do":"put","path":%s%s}`, quotedJSON(name), more))
	f.pour(data)
	f.frame(frameCancel, "")
	f.wantEnd(426, "cancelled")
}

// TestPutIsSTOR: an upload by frames and one by lines end the same, and either goes on
// with what the other has left.
func TestPutIsSTOR(t *testing.T) {
	inBox(t, "", "quota_bytes = \"1KiB\"\nquota_files = 10\n", func(t *testing.T, b *ftpBox) {
		c, l := b.dialFrames(t).enter(), b.dial(t).login()
		usage := func(bytes, files int) {
			t.Helper()
			o := c.do(`{"do":"usage"}`, 213, "")
			if o.field("bytes") != fmt.Sprint(bytes) || o.field("files") != fmt.Sprint(files) {
				t.Fatalf("usage %s; want %d bytes, %d files", o.raw, bytes, files)
			}
		}
		l.store("STOR a", "0123456789")
		usage(10, 1)
		if o := c.put("b", "01234", `,"size":5`); *o.Left != 1024-15 || o.SHA256 != hexSum("01234") {
			t.Fatal(o.raw)
		}
		usage(15, 2)
		c.put("a", "xyz", "") // charged for its growth only
		usage(8, 2)
		c.put("a", "+", `,"append":true`)
		if got := b.content(t, "a"); got != "xyz+" {
			t.Fatal(got)
		}
		// Cut off over an existing file: aside, charged, known to both.
		c.cutOff("a", "new con", "")
		if got := c.partial("a"); got != partialOf("new con") || b.content(t, "a") != "xyz+" {
			t.Fatalf("partial %s, file %q", got, b.content(t, "a"))
		}
		usage(16, 3)
		for _, offset := range []int{1, 4, 6, 8, 100} { // any other is refused, and told what is there
			if o := c.do(fmt.Sprintf(`{"do":"put","path":"a","offset":%d}`, offset), 554, "offset"); *o.Have != 7 {
				t.Fatal(o.raw)
			}
		}
		c.do(`{"do":"put","path":"a","offset":7,"size":6}`, 501, "bad_request")
		if got := c.partial("a"); got != partialOf("new con") {
			t.Fatalf("a request that was wrong has cost the partial: %s", got)
		}
		l.cmd("REST 7", "350 *")
		if got := l.store("STOR a", "tent"); !strings.HasPrefix(got, "226") {
			t.Fatal(got)
		}
		if got := b.content(t, "a"); got != "new content" || c.partial("a") != "" {
			t.Fatalf("%q, %s", got, c.partial("a"))
		}
		usage(16, 2)
		// Cut off as a new name: it takes the name, and APPE or put go on there.
		c.cutOff("n", "abc", "")
		if c.partial("n") != "" && c.partial("n") != partialOf("abc") || b.content(t, "n") != "abc" {
			t.Fatalf("%s, %q", c.partial("n"), b.content(t, "n"))
		}
		l.store("APPE n", "def")
		c.put("n", "ghi", `,"offset":6,"size":9`)
		if got := b.content(t, "n"); got != "abcdefghi" {
			t.Fatal(got)
		}
		// The first bytes of a complete file are kept, the rest is replaced.
		c.put("n", "XYZ", `,"offset":3`)
		if got := b.content(t, "n"); got != "abcXYZ" {
			t.Fatal(got)
		}
		if hidden := hiddenNames(t, b.home); len(hidden) != 0 {
			t.Errorf("left: %q", hidden)
		}
	})
}

// TestPutDigests: the digest may be told in the request, in F or in both, of the whole
// file or of what was sent; what does not agree changes nothing and leaves nothing.
func TestPutDigests(t *testing.T) {
	inBox(t, "", "quota_bytes = \"1KiB\"\n", func(t *testing.T, b *ftpBox) {
		const old, data = "old content", "new content!"
		good, bad := hexSum(data), hexSum("another")
		for _, r := range []struct {
			request, end string
			code         int
			reason       string
		}{
			{"", "", 226, ""}, {"", `{}`, 226, ""}, {"", ` {"size":12} `, 226, ""}, {`,"size":12`, `{"size":12}`, 226, ""},
			{`,"sha256":"` + good + `"`, "", 226, ""}, {`,"sha256":"` + strings.ToUpper(good) + `"`, `{"sha256":"` + good + `"}`, 226, ""},
			{"", `{"sha256":"` + strings.ToUpper(good) + `"}`, 226, ""},
			{`,"sha256":"` + bad + `"`, "", 451, "digest_mismatch"}, {"", `{"sha256":"` + bad + `"}`, 451, "digest_mismatch"},
			{`,"sha256":"` + good + `"`, `{"sha256":"` + bad + `"}`, 451, "digest_mismatch"}, {`,"sha256":"` + bad + `"`, `{"sha256":"` + good + `"}`, 451, "digest_mismatch"},
			{`,"size":13`, "", 426, "size_mismatch"}, {`,"size":11`, "", 426, "size_mismatch"}, {"", `{"size":11}`, 426, "size_mismatch"}, {`,"size":0`, "", 426, "size_mismatch"},
		} {
			for _, name := range []string{"f", "fresh"} {
				os.Remove(filepath.Join(b.home, "fresh"))
				os.Remove(filepath.Join(b.home, partialName("f")))
				b.put(t, "f", old)
				c := b.dialFrames(t).enter()
				c.where = fmt.Sprintf("%s %s %s: ", name, r.request, r.end)
				c.frame(frameRequest, `{"do":"put","path":"`+name+`"`+r.request+`}`)
				c.frame(frameData, data[:5])
				c.frame(frameData, data[5:])
				c.frame(frameEnd, r.end)
				o := c.wantEnd(r.code, r.reason)
				switch {
				case r.code == 226:
					if got := b.content(t, name); got != data || o.SHA256 != good || *o.Size != 12 {
						c.fatalf("%q, %s", got, o.raw)
					}
				case b.content(t, "f") != old:
					c.fatalf("the old file became %q", b.content(t, "f"))
				case r.reason == "digest_mismatch":
					if _, err := os.Lstat(filepath.Join(b.home, "fresh")); name == "fresh" && err == nil || len(hiddenNames(t, b.home)) > 0 {
						c.fatalf("something was kept: %q", hiddenNames(t, b.home))
					}
				case o.Have == nil:
					c.fatalf("%s does not tell what has come", o.raw)
				}
				c.do(`{"do":"time"}`, 200, "")
				c.bare.Close()
				<-c.over
			}
		}
		b.wantMetric(t, 8, "berth_transfers_total", "upload", "digest_mismatch")
		b.wantMetric(t, 14, "berth_transfers_total", "upload", "ok")
	})
}

// TestPutResumeDigest: a resumed file is checked as a whole, prefix included.
func TestPutResumeDigest(t *testing.T) {
	inBox(t, "", "", func(t *testing.T, b *ftpBox) {
		c := b.dialFrames(t).enter()
		for _, size := range []int{40, 100_000, 3 << 20} {
			data := string(testBytes(size))
			half := size/2 + 1
			for _, sum := range []string{hexSum(data), hexSum(data[half:])} { // of all, or of what is sent
				b.put(t, "f", "old")
				c.cutOff("f", data[:half], "")
				if got := c.partial("f"); got != partialOf(data[:half]) {
					t.Fatalf("%d: partial %s", size, got)
				}
				c.frame(frameRequest, fmt.Sprintf(`{"do":"put","path":"f","offset":%d,"size":%d,"sha256":"%s"}`, half, size, sum))
				c.pour(data[half:])
				c.frame(frameEnd, fmt.Sprintf(`{"size":%d}`, size))
				if o := c.wantEnd(226, ""); o.SHA256 != hexSum(data) || *o.opening.Offset != int64(half) {
					t.Fatal(o.raw)
				}
				if got := c.fetchFile("f"); got != data {
					t.Fatalf("%d: other bytes", size)
				}
			}
			c.cutOff("f", "spliced"+data[7:half], "")
			c.frame(frameRequest, fmt.Sprintf(`{"do":"put","path":"f","offset":%d,"sha256":"%s"}`, half, hexSum(data[:half]+"rest")))
			c.frame(frameData, "rest")
			c.frame(frameEnd, "")
			c.wantEnd(451, "digest_mismatch")
			if got := b.content(t, "f"); got != data {
				t.Fatalf("%d: old and new were mixed", size)
			}
			os.Remove(filepath.Join(b.home, "f"))
			os.Remove(filepath.Join(b.home, partialName("f")))
		}
	})
}

// TestPutQuota: refused by the announced size, or where it ends, with nothing left; the
// disk's own limits have a code of their own in TestDisk.
func TestPutQuota(t *testing.T) {
	frameWays(t, "", "quota_bytes = \"1MiB\"\nquota_files = 2\n", func(t *testing.T, b *ftpBox, c *frameClient) {
		b.put(t, "keep", "")
		os.Remove(filepath.Join(b.home, "keep"))
		c.put("a", "old", "")
		c.upload("a", strings.Repeat("x", 1<<20+1), `,"size":1048577`)
		if o := c.wantEnd(552, "quota"); o.opening != nil {
			t.Error("an upload that has no room was begun")
		}
		c.upload("a", strings.Repeat("x", 3<<20), "")
		if o := c.wantEnd(552, "quota"); o.opening == nil {
			t.Error(o.raw)
		}
		if got := b.content(t, "a"); got != "old" {
			t.Errorf("%.20q", got)
		}
		c.put("a", strings.Repeat("x", 1<<20), "")
		c.upload("b", "1", "")
		c.wantEnd(552, "quota")
		c.put("b", "", "")
		c.do(`{"do":"touch","path":"c"}`, 552, "quota")
		c.do(`{"do":"put","path":"c"}`, 552, "quota")
		if o := c.do(`{"do":"usage"}`, 213, ""); o.field("bytes") != "1048576" || o.field("files") != "2" {
			t.Error(o.raw)
		}
		b.wantMetric(t, 5, "berth_quota_rejected_total", "ann")
	})
}

// TestPutMeta: time and mode arrive with the content, and only with it.
func TestPutMeta(t *testing.T) {
	inBox(t, "", "", func(t *testing.T, b *ftpBox) {
		c := b.dialFrames(t).enter()
		c.put("f", "1", `,"mtime":"2001-02-03T04:05:06.000000007Z","mode":"0600"`)
		stat := func() string {
			o := c.do(`{"do":"stat","path":"f"}`, 213, "")
			return o.MTime + " " + o.Mode
		}
		if got := stat(); got != "2001-02-03T04:05:06.000000007Z 0600" {
			t.Error(got)
		}
		c.cutOff("f", "new", `,"mtime":"2011-01-01T00:00:00Z","mode":"0644"`)
		c.upload("f", "new", `,"mtime":"2011-01-01T00:00:00Z","mode":"0644","sha256":"`+hexSum("")+`"`)
		c.wantEnd(451, "digest_mismatch")
		if got := stat(); got != "2001-02-03T04:05:06.000000007Z 0600" {
			t.Error(got)
		}
		c.put("f", "2", `,"mtime":"2011-01-01T01:00:00+01:00"`)
		if got := stat(); got != "2011-01-01T00:00:00Z 0600" { // a file that is replaced keeps its mode
			t.Error(got)
		}
		if o := c.do(`{"do":"get","path":"f"}`, 226, ""); o.opening.MTime != "2011-01-01T00:00:00Z" || o.opening.Mode != "0600" || *o.opening.Size != 1 {
			t.Error(o.opening.raw)
		}
		c.put("g", "3", `,"mode":"7777"`)
		if info, err := os.Stat(filepath.Join(b.home, "g")); err != nil || info.Mode() != 0o777 {
			t.Errorf("%v, %v; want no special bits", info.Mode(), err)
		}
	})
}

// TestPutsOfOneName: at the same time, by both front ends: the last to end has the name,
// whole, and who read before reads on.
func TestPutsOfOneName(t *testing.T) {
	inBox(t, "", "", func(t *testing.T, b *ftpBox) {
		old := strings.Repeat("old ", 1<<18)
		b.put(t, "f", old)
		reader, one, two, line := b.dialFrames(t).enter(), b.dialFrames(t).enter(), b.dialFrames(t).enter(), b.dial(t).login()
		reader.frame(frameRequest, `{"do":"get","path":"f"}`)
		reader.wantFrame(frameAnswer, `{"code":150,*`)
		for _, c := range []*frameClient{one, two} {
			c.frame(frameRequest, `{"do":"put","path":"f"}`)
			c.wantFrame(frameAnswer, `{"code":150,*`)
		}
		line.cmd("EPSV", "229 *")
		d := line.data()
		line.cmd("STOR f", "150 *")
		one.frame(frameData, "one")
		d.Write([]byte("line"))
		two.frame(frameData, "two")
		two.frame(frameEnd, "")
		two.wantEnd(226, "")
		if got := b.content(t, "f"); got != "two" {
			t.Error(got)
		}
		d.Close()
		line.want("226 *")
		one.frame(frameEnd, "")
		one.wantEnd(226, "")
		if got := b.content(t, "f"); got != "one" {
			t.Error(got)
		}
		if o := reader.rest(); string(o.data) != old || o.ends[0] != partialOf(old) {
			t.Errorf("the reader got %d bytes, %q", len(o.data), o.ends)
		}
		// Of a partial there is one: who comes second waits.
		one.cutOff("f", "part", "")
		one.frame(frameRequest, `{"do":"put","path":"f","offset":4}`)
		one.wantFrame(frameAnswer, `{"code":150,*`)
		two.frame(frameRequest, `{"do":"put","path":"f","offset":4}`)
		if o := two.rest(); o.Code != 450 && o.Code != 554 {
			t.Errorf("a partial that is being continued: %s", o.raw)
		}
		one.frame(frameEnd, "")
		one.wantEnd(226, "")
	})
}

// TestGetRanges: offset and size, with the digest of what is sent.
func TestGetRanges(t *testing.T) {
	frameWays(t, "", "", func(t *testing.T, b *ftpBox, c *frameClient) {
		data := string(testBytes(2<<20 + 17))
		b.put(t, "f", data)
		b.put(t, "empty", "")
		n := len(data)
		for _, r := range [][2]int{{0, n}, {0, n + 1}, {0, 0}, {0, 1}, {n, 5}, {n - 1, 5}, {1, n}, {1, smallGet}, {1, smallGet + 1}, {12345, 1 << 20}, {4096, 1<<20 - 1}, {1 << 20, 1<<20 + 1}} {
			got := c.get(fmt.Sprintf(`{"do":"get","path":"f","offset":%d,"size":%d}`, r[0], r[1]))
			if want := data[r[0]:min(n, r[0]+r[1])]; got != want {
				t.Errorf("%v: %d bytes; want %d", r, len(got), len(want))
			}
		}
		if got := c.get(`{"do":"get","path":"f","size":9223372036854775807}`); got != data {
			t.Error(len(got))
		}
		if got := c.fetchFile("empty"); got != "" {
			t.Error(got)
		}
		if o := c.do(`{"do":"get","path":"f","offset":7,"size":3}`, 226, ""); *o.opening.Size != int64(n) || *o.opening.Offset != 7 {
			t.Error(o.opening.raw)
		}
	})
}

// TestGetDigestIsNotStale: a digest that is kept is told as long as the file is the one
// it was computed of.
func TestGetDigestIsNotStale(t *testing.T) {
	frameWays(t, "", "", func(t *testing.T, b *ftpBox, c *frameClient) {
		data := string(testBytes(1<<20 + 5))
		name := filepath.Join(b.home, "f")
		c.put("f", data, "") // keeps it
		for range 2 {
			if got := c.fetchFile("f"); got != data {
				t.Fatal("other bytes")
			}
		}
		change := func(what string, do func() error) {
			t.Helper()
			if err := do(); err != nil {
				t.Fatal(err)
			}
			c.where = what + ": "
			want := b.content(t, "f")
			for range 2 { // the second time it is kept again
				if got := c.fetchFile("f"); got != want { // get compares with F
					c.fatalf("other bytes")
				}
				if o := c.do(`{"do":"hash","path":"f"}`, 213, ""); o.SHA256 != hexSum(want) {
					c.fatalf("%s", o.raw)
				}
			}
		}
		change("written over", func() error { return os.WriteFile(name, testBytes(1<<20 + 5)[1:], 0o644) })
		change("one byte", func() error {
			f, err := os.OpenFile(name, os.O_WRONLY, 0)
			if err == nil {
				_, err = f.WriteAt([]byte("?"), 1<<19)
				f.Close()
			}
			return err
		})
		change("shorter", func() error { return os.Truncate(name, 1<<20) })
		change("another file", func() error {
			if err := os.WriteFile(name+"2", []byte(data), 0o644); err != nil {
				return err
			}
			return os.Rename(name+"2", name)
		})
		change("by lines", func() error { c.put("f", "tail", `,"append":true`); return nil })
		change("of the same time and size", func() error {
			c.put("f", strings.Repeat("a", 70_000), `,"mtime":"2001-01-01T00:00:00Z"`)
			c.fetchFile("f")
			c.put("f", strings.Repeat("b", 70_000), `,"mtime":"2001-01-01T00:00:00Z"`)
			return nil
		})
	})
}

// TestGetShrinking: a file that becomes shorter while it is sent has no F behind it.
func TestGetShrinking(t *testing.T) {
	frameWays(t, "", "", func(t *testing.T, b *ftpBox, c *frameClient) {
		if c.over != nil {
			return // TestGetOfOneVersion; here sendfile(2) is what matters
		}
		name := filepath.Join(b.home, "f")
		sparse(t, name, 1<<30)
		c.frame(frameRequest, `{"do":"get","path":"f"}`)
		c.wantFrame(frameAnswer, `{"code":150,*`)
		for range 5 {
			c.next()
		}
		if err := os.Truncate(name, 100); err != nil {
			t.Fatal(err)
		}
		if o := c.wantEnd(451, "changed"); len(o.ends) != 0 {
			t.Errorf("F %q", o.ends)
		}
		c.do(`{"do":"time"}`, 200, "")
		if got := c.fetchFile("f"); len(got) != 100 {
			t.Error(len(got))
		}
		waitUntil(t, "the figures", func() bool { return b.metric(t, "berth_transfers_active") == 0 })
	})
}

// TestFramedRates: limits are the user's, over all his sessions and front ends.
func TestFramedRates(t *testing.T) {
	inBox(t, "limits.data_timeout = \"1h\"\n", "download_rate = \"100KiB\"\nupload_rate = \"50KiB\"\n", func(t *testing.T, b *ftpBox) {
		data := strings.Repeat("x", 500<<10)
		c := b.dialFrames(t).enter()
		took := func(do func()) time.Duration {
			start := time.Now()
			do()
			return time.Since(start)
		}
		if d := took(func() { c.put("f", data, "") }); d < 8*time.Second || d > 12*time.Second {
			t.Errorf("put at 50 KiB/s took %v", d)
		}
		if d := took(func() { c.fetchFile("f") }); d < 4*time.Second || d > 6*time.Second {
			t.Errorf("get at 100 KiB/s took %v", d)
		}
		small := took(func() {
			b.put(t, "small", strings.Repeat("y", 10<<10))
			for range 50 {
				c.fetchFile("small")
			}
		})
		if small < 4*time.Second || small > 6*time.Second {
			t.Errorf("50 small files took %v", small)
		}
	})
}

// TestFramedTransfersAreTold: each has a line in the log, is counted, and charged.
func TestFramedTransfersAreTold(t *testing.T) {
	inBox(t, "", "quota_bytes = \"1MiB\"\n", func(t *testing.T, b *ftpBox) {
		c := b.dialFrames(t).enter()
		c.put("up", "12345", "")
		c.fetchFile("up")
		big := strings.Repeat("x", 30<<10)
		c.put("big", big, "")
		c.fetchFile("big")
		c.do(`{"do":"get","path":"no"}`, 550, "not_found")
		c.cutOff("up", "123", "")
		synctest.Wait()
		for _, want := range []string{
			"*msg=transfer*user=ann*proto=frames verb=put path=/up bytes=5 *result=ok sha256=" + hexSum("12345"),
			"*msg=transfer*user=ann*proto=frames verb=get path=/up bytes=5 *result=ok*",
			"*msg=transfer*user=ann*proto=frames verb=get path=/big bytes=30720 *result=ok*",
			"*msg=transfer*user=ann*proto=frames verb=put path=/up bytes=3 *result=aborted*",
		} {
			n := 0
			for line := range strings.Lines(b.log.String()) {
				if wildcard(want, strings.TrimSuffix(line, "\n")) {
					n++
				}
			}
			if n != 1 {
				t.Errorf("%d lines like %q", n, want)
			}
		}
		b.wantMetric(t, 2, "berth_transfers_total", "ann", "upload", "frames", "ok")
		b.wantMetric(t, 1, "berth_transfers_total", "ann", "upload", "frames", "aborted")
		b.wantMetric(t, 2, "berth_transfers_total", "ann", "download", "frames", "ok")
		b.wantMetric(t, 1, "berth_transfers_total", "ann", "download", "frames", "refused")
		b.wantMetric(t, 5+30<<10+3, "berth_transfer_bytes_total", "ann", "upload", "frames")
		b.wantMetric(t, 5+30<<10, "berth_transfer_bytes_total", "ann", "download", "frames")
		b.wantMetric(t, 0, "berth_transfers_active")
		b.wantMetric(t, 3, "berth_control_commands_total", "put", "1xx")
		b.wantMetric(t, 1, "berth_control_commands_total", "get", "5xx")
	})
}

// TestOnUploadAfterPut: the command for finished uploads runs for a put as for a STOR.
func TestOnUploadAfterPut(t *testing.T) {
	b := newFTPBox(t, realListen+"exec.sandbox = \"best-effort\"\ncommands.note.run = [\"/bin/sh\", \"-c\", \"echo $BERTH_FILE >> notes; echo $BERTH_SHA256 >> notes\"]\n", "on_upload = \"note\"\n")
	c := b.dialReal(t, b.serveReal(t)[0])
	c.want("220 *")
	f := c.frames().enter()
	f.put("f", "content", "")
	waitUntil(t, "the command", func() bool {
		got, _ := os.ReadFile(filepath.Join(b.home, "notes"))
		return strings.Contains(string(got), "/f\n") && strings.Contains(string(got), hexSum("content"))
	})
}

// TestWithoutDigest: who says that he wants none has none computed, large or small; one
// that comes all the same is compared.
func TestWithoutDigest(t *testing.T) {
	frameWays(t, "", "", func(t *testing.T, b *ftpBox, c *frameClient) {
		for _, n := range []int{0, 5, followFrom + 7} {
			text := strings.Repeat("0123456789", n/10+1)[:n]
			c.upload("f", text, `,"sha256":"none"`) // whose F has the digest
			if o := c.wantEnd(226, ""); o.SHA256 != hexSum(text) {
				t.Errorf("%d bytes: %s", n, o.raw)
			}
			c.frame(frameRequest, `{"do":"put","path":"f","sha256":"none"}`)
			for rest := text; rest != ""; {
				k := min(len(rest), maxFrame)
				c.frame(frameData, rest[:k])
				rest = rest[k:]
			}
			c.frame(frameEnd, "")
			if o := c.wantEnd(226, ""); o.SHA256 != "" || *o.Size != int64(n) {
				t.Errorf("%d bytes: %s", n, o.raw)
			}
			if got := b.content(t, "f"); got != text {
				t.Errorf("%d bytes: %d arrived", n, len(got))
			}
			o := c.do(`{"do":"get","path":"f","sha256":"none"}`, 226, "")
			if string(o.data) != text || strings.Contains(o.ends[0], "sha256") {
				t.Errorf("get of %d bytes: %d, %s", n, len(o.data), o.ends[0])
			}
		}
	})
}
