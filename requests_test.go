package main

// What each request answers, seen from outside: every row of the table in every state and
// with every permission, what errors are called, names that are difficult, and what
// requests leave on the disk, in the ledger, the log and the metrics. put and get are in
// requests_transfer_test.go, order and time in framed_order_test.go.

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// --- the table ---

func TestRequestTable(t *testing.T) {
	seen := map[string]bool{}
	for i := range requests {
		r := &requests[i]
		switch {
		case seen[r.do]:
			t.Errorf("%s is in the table twice", r.do)
		case requestIndex[r.do] != r:
			t.Errorf("%s is not found by its name", r.do)
		case r.do != strings.ToLower(r.do) || r.do == "":
			t.Errorf("%q is not in small letters", r.do)
		case r.run == nil || r.help == "" || strings.HasSuffix(r.help, ".") || r.help[0] < 'a':
			t.Errorf("%s: help %q is no lower-case phrase without a period", r.do, r.help)
		case r.perm != 0 && !r.login || r.onBox && r.login:
			t.Errorf("%s: its rules do not go together", r.do)
		}
		seen[r.do] = true
		// What it says it takes, it takes: the parser knows the names.
		for _, f := range strings.FieldsFunc(r.fields, func(c rune) bool { return c == ',' || c == ' ' }) {
			if _, bad, err := parseRequest([]byte(`{"do":"` + r.do + `","` + f + `":null}`)); bad != "" || err != nil {
				t.Errorf("%s: the field %s: %s, %v", r.do, f, bad, err)
			}
		}
	}
	if len(requestIndex) != len(requests) {
		t.Errorf("%d names lead to %d rows", len(requestIndex), len(requests))
	}
}

// requestRow is how to make a request succeed for a user with exactly its permissions.
type requestRow struct {
	more string // fields, each with a comma in front
	code int
	data string // D and F that follow; "" for none
}

// requestRows: a, b and d are a file, a file and an empty directory. A request of the
// table that is missing here fails the matrix.
var requestRows = map[string]requestRow{
	"standing": {`,"user":"ann"`, 550, ""},
	"login":    {`,"user":"ann","password":"secret"`, 503, ""}, "quit": {"", 221, ""},
	"list": {`,"path":"/","recursive":true`, 226, ""}, "stat": {`,"path":"a"`, 213, ""},
	"get": {`,"path":"a"`, 226, ""}, "put": {`,"path":"new"`, 226, "data"},
	"mkdir": {`,"path":"new/er","recursive":true`, 257, ""}, "remove": {`,"path":"d"`, 250, ""}, "move": {`,"path":"a","to":"c"`, 250, ""},
	"touch": {`,"path":"a"`, 250, ""}, "chmod": {`,"path":"a","mode":"0600"`, 250, ""}, "hash": {`,"path":"a"`, 213, ""},
	"cd": {`,"path":"d"`, 250, ""}, "usage": {"", 213, ""}, "exec": {`,"command":"uptime"`, 550, ""},
	"echo": {`,"text":"x"`, 200, ""}, "upper": {`,"text":"x"`, 200, ""}, "time": {"", 200, ""},
	"say": {`,"text":"x"`, 200, ""}, "listen": {"", 200, ""}, "who": {"", 226, ""},
	"kick": {`,"session":1`, 550, ""}, "wall": {`,"text":"x"`, 550, ""}, "reload": {"", 550, ""}, "drain": {"", 550, ""},
	"quotas": {"", 550, ""}, "metrics": {"", 550, ""}, "learn": {`,"user":"ann"`, 550, ""},
}

// TestRequestMatrix runs every row of the real table as nobody, as a user without the
// row's permission, with exactly it, and with all. What is refused must leave the disk as
// it was.
func TestRequestMatrix(t *testing.T) {
	for i := range requests {
		r := &requests[i]
		m, ok := requestRows[r.do]
		if !ok {
			t.Errorf("%s is new: give requestRows fields with which it succeeds", r.do)
			continue
		}
		t.Run(r.do, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { r.playMatrix(t, m) })
		})
	}
}

func (r *requestKind) playMatrix(t *testing.T, m requestRow) {
	b := newFTPBox(t, "", "")
	who := map[string]permission{"without": permAll &^ r.perm, "exact": r.perm, "all": permAll}
	for _, as := range []string{"nobody", "without", "exact", "all"} {
		home := filepath.Join(b.dir, "home", as)
		if err := os.MkdirAll(filepath.Join(home, "d"), 0o755); err != nil {
			t.Fatal(err)
		}
		for _, f := range []string{"a", "b"} {
			if err := os.WriteFile(filepath.Join(home, f), []byte("content of "+f), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		f := b.dialFrames(t)
		f.where = as + ": "
		if as != "nobody" {
			words, _ := json.Marshal(append([]string{}, who[as].names()...))
			b.user(t, as, fmt.Sprintf("home = %q\npermissions = %s\n", home, words))
			f.enter(as)
		}
		before := snapshot(t, b.dir)
		f.frame(frameRequest, `{"do":"`+r.do+`"`+m.more+`}`)
		if m.data != "" {
			f.frame(frameData, m.data)
			f.frame(frameEnd, "")
		}
		refused := true
		switch {
		case as == "nobody" && r.login:
			f.wantEnd(530, "not_logged_in")
		case r.onBox:
			f.wantEnd(550, "denied")
		case as == "without" && r.perm != 0:
			if o := f.wantEnd(550, "denied"); o.Text != "Permission denied: this account may not "+r.perm.String()+"." {
				f.fatalf("%s", o.raw)
			}
		case as == "nobody" && r.do == "login":
			f.wantEnd(230, "")
		default:
			refused = false
			if o := f.rest(); o.Code != m.code {
				f.fatalf("%s: %s; want %d", r.do, o.raw, m.code)
			}
		}
		if after := snapshot(t, b.dir); refused && before != after {
			f.fatalf("refused, and changed the disk from\n%s\nto\n%s", before, after)
		}
		if r.do != "quit" {
			f.do(`{"do":"echo","text":"still here"}`, map[bool]int{true: 530, false: 200}[as == "nobody" && r.do != "login"], map[bool]string{true: "not_logged_in"}[as == "nobody" && r.do != "login"])
		}
		f.bare.Close()
		<-f.over
	}
}

// --- what errors are called ---

// TestRequestErrors: every error has its code and the reason by which programs tell it.
func TestRequestErrors(t *testing.T) {
	inBox(t, "", "quota_bytes = \"100KiB\"\nquota_files = 20\n", func(t *testing.T, b *ftpBox) {
		b.put(t, "f", "content")
		b.put(t, "full/f", "x")
		if err := os.Mkdir(filepath.Join(b.home, "d"), 0o755); err != nil {
			t.Fatal(err)
		}
		for link, to := range map[string]string{"out": b.dir, "dangling": "nowhere", "loop": "loop", "inside": "d"} {
			if err := os.Symlink(to, filepath.Join(b.home, link)); err != nil {
				t.Fatal(err)
			}
		}
		long := strings.Repeat("n", 256)
		c := b.dialFrames(t).enter()
		before := snapshot(t, b.home)
		for _, r := range []struct {
			fields string
			code   int
			reason string
		}{
			{`"stat","path":"no"`, 550, "not_found"}, {`"list","path":"no"`, 550, "not_found"}, {`"get","path":"no"`, 550, "not_found"},
			{`"hash","path":"no"`, 550, "not_found"}, {`"remove","path":"no"`, 550, "not_found"}, {`"remove","path":"no","recursive":true`, 550, "not_found"},
			{`"move","path":"no","to":"x"`, 550, "not_found"}, {`"move","path":"f","to":"no/x"`, 550, "not_found"}, {`"chmod","path":"no","mode":"0600"`, 550, "not_found"},
			{`"touch","path":"no/x"`, 550, "not_found"}, {`"mkdir","path":"no/x"`, 550, "not_found"}, {`"cd","path":"no"`, 550, "not_found"}, {`"put","path":"no/x"`, 550, "not_found"},
			{`"get","path":"d"`, 550, "is_directory"}, {`"hash","path":"/"`, 550, "is_directory"}, {`"put","path":"d"`, 550, "is_directory"}, {`"put","path":"/"`, 550, "is_directory"},
			{`"get","path":"f/x"`, 550, "not_directory"}, {`"cd","path":"f"`, 550, "not_directory"}, {`"mkdir","path":"f/x"`, 550, "not_directory"}, {`"mkdir","path":"f/x","recursive":true`, 550, "exists"},
			{`"mkdir","path":"d"`, 550, "exists"}, {`"mkdir","path":"f"`, 550, "exists"}, {`"mkdir","path":"f","recursive":true`, 550, "exists"},
			{`"remove","path":"full"`, 550, "not_empty"}, {`"remove","path":"/"`, 550, "top_directory"}, {`"move","path":"/","to":"x"`, 550, "top_directory"},
			{`"get","path":".berth-up-x"`, 553, "bad_name"}, {`"put","path":"d/.berth-x"`, 553, "bad_name"}, {`"mkdir","path":".berth-x/y","recursive":true`, 553, "bad_name"},
			{`"move","path":"f","to":".berth-x"`, 553, "bad_name"}, {`"stat","path":".berth-part-f"`, 553, "bad_name"}, {`"touch","path":".berth-x"`, 553, "bad_name"},
			{`"get","path":"a\u0000b"`, 553, "bad_name"}, {`"put","path":"a\nb"`, 553, "bad_name"}, {`"mkdir","path":"a\rb"`, 553, "bad_name"}, {`"list","path_bytes":"YQBi"`, 553, "bad_name"},
			{`"put","path":"` + long + `"`, 553, "bad_name"}, {`"mkdir","path":"` + long + `"`, 553, "bad_name"}, {`"move","path":"f","to":"` + long + `"`, 553, "bad_name"},
			{`"list","path":"` + strings.Repeat("d/", 4000) + `"`, 553, "bad_name"},
			{`"get","path":"out/berth.toml"`, 550, "*"}, {`"list","path":"out"`, 550, "*"}, {`"put","path":"out/new"`, 550, "*"}, {`"cd","path":"out"`, 550, "*"},
			{`"get","path":"loop"`, 550, "denied"}, {`"get","path":"dangling"`, 550, "not_found"},
			{`"get","path":"f","offset":8`, 554, "offset"}, {`"hash","path":"f","offset":8`, 554, "offset"}, {`"put","path":"f","offset":8`, 554, "offset"}, {`"put","path":"x","offset":1`, 554, "offset"},
			{`"put","path":"x","size":102400000`, 552, "quota"},
			{`"get"`, 501, "bad_request"}, {`"get","path":""`, 501, "bad_request"}, {`"put"`, 501, "bad_request"}, {`"remove"`, 501, "bad_request"}, {`"mkdir","path":""`, 501, "bad_request"},
			{`"move","path":"f"`, 501, "bad_request"}, {`"move","path":"f","to":""`, 501, "bad_request"}, {`"move","to":"f"`, 501, "bad_request"},
			{`"get","path":"f","offset":-1`, 501, "bad_request"}, {`"get","path":"f","size":-1`, 501, "bad_request"}, {`"hash","path":"f","offset":-1`, 501, "bad_request"},
			{`"get","path":"f","offset":9223372036854775807`, 554, "offset"}, {`"hash","path":"f","offset":9223372036854775807,"size":9223372036854775807`, 554, "offset"},
			{`"put","path":"f","offset":9223372036854775807`, 554, "offset"}, {`"put","path":"f","offset":-1`, 501, "bad_request"}, {`"put","path":"f","size":-1`, 501, "bad_request"},
			{`"put","path":"f","size":9223372036854775807`, 552, "quota"}, {`"put","path":"f","append":true,"size":9223372036854775807`, 501, "bad_request"}, {`"put","path":"f","append":true,"offset":3`, 501, "bad_request"},
			{`"put","path":"f","sha256":"abc"`, 501, "bad_request"}, {`"put","path":"f","mtime":"yesterday"`, 501, "bad_request"}, {`"put","path":"f","mode":"rw"`, 501, "bad_request"}, {`"put","path":"f","mode":"10000"`, 501, "bad_request"},
			{`"put","path":"f","offset":3,"size":2`, 501, "bad_request"},
			{`"touch","path":"f","mtime":"2001-02-30T00:00:00Z"`, 501, "bad_request"}, {`"touch","path":"f","mtime":"1969-12-31T23:59:59Z"`, 501, "bad_request"}, {`"chmod","path":"f"`, 501, "bad_request"},
			{`"chmod","path":"f","mode":"0888"`, 501, "bad_request"}, {`"chmod","path":"f","mode":"-1"`, 501, "bad_request"}, {`"hash","path":"f","algorithm":"rot13"`, 501, "bad_request"},
			{`"exec"`, 501, "bad_request"}, {`"exec","command":"x","shell":"y"`, 501, "bad_request"}, {`"exec","command":"x"`, 550, "denied"}, {`"exec","shell":"id"`, 550, "denied"},
			{`"say"`, 501, "bad_request"}, {`"say","text":"` + long + long + long + long + `"`, 501, "bad_request"},
			{`"LIST"`, 500, "unknown_request"}, {`"list "`, 500, "unknown_request"}, {`"` + long + `"`, 500, "unknown_request"}, {`""`, 501, "bad_request"},
		} {
			c.where = fmt.Sprintf("%.100s: ", r.fields)
			c.frame(frameRequest, `{"do":`+r.fields+`}`)
			o := c.rest()
			if o.Code != r.code || !wildcard(r.reason, o.Reason) || o.Text == "" || len(o.Text) > 600 {
				t.Errorf("%.100s: %.300s; want %d %q", r.fields, o.raw, r.code, r.reason)
			}
			if (o.Reason == "offset") != (o.Have != nil) {
				t.Errorf("%.100s: %s", r.fields, o.raw)
			}
		}
		synctest.Wait()
		if after := snapshot(t, b.home); after != before {
			t.Errorf("the disk was\n%s\nand is\n%s", before, after)
		}
		b.wantMetric(t, 0, "berth_panics_total")
		if strings.Contains(b.log.String(), "local error") {
			t.Errorf("the log:\n%s", b.log)
		}
	})
}

// --- names ---

// listed is what list tells, by name.
type listed struct {
	Name      string `json:"name"`
	NameBytes []byte `json:"name_bytes"`
	Type      string `json:"type"`
	Size      int64  `json:"size"`
	MTime     string `json:"mtime"`
	Mode      string `json:"mode"`
	Target    string `json:"target"`
}

func (f *frameClient) list(fields string) map[string]listed {
	f.t.Helper()
	o := f.do(`{"do":"list"`+fields+`}`, 226, "")
	all := map[string]listed{}
	for line := range strings.Lines(string(o.data)) {
		var l listed
		if err := json.Unmarshal([]byte(line), &l); err != nil || !strings.HasSuffix(line, "}\n") {
			f.fatalf("line %q: %v", line, err)
		}
		name := l.Name
		if l.NameBytes != nil {
			name = string(l.NameBytes)
		}
		if _, twice := all[name]; twice {
			f.fatalf("%q is listed twice", name)
		}
		all[name] = l
	}
	return all
}

// TestNamesInFrames: each name that the disk can store travels both ways, whatever is in
// it, and none that berth keeps for itself is to be seen.
func TestNamesInFrames(t *testing.T) {
	names := []string{"plain", "with space", " leading", `quo"te`, `back\slash`, "tab\tstop", "esc\x1b[31m", "del\x7f", "bell\a", "grüße", "日本語", "\u2028\u2029",
		"<a>&amp;", "inval\xffid", "\xc3", "ends in \xe2\x82", "-rf", "*", "%2e%2e", "...", "~", "\U0001f4f7", strings.Repeat("m", 255)}
	inBox(t, "", "", func(t *testing.T, b *ftpBox) {
		c := b.dialFrames(t).enter()
		path := func(field, name string) string {
			return fmt.Sprintf(`,"%s_bytes":"%s"`, field, base64.StdEncoding.EncodeToString([]byte(name)))
		}
		for _, name := range names {
			c.frame(frameRequest, `{"do":"put"`+path("path", name)+`}`)
			c.frame(frameData, name)
			c.frame(frameEnd, `{"sha256":"`+hexSum(name)+`"}`)
			c.wantEnd(226, "")
		}
		b.put(t, ".berth-up-hidden", "x")
		b.put(t, ".berth-part-plain", "x")
		all := c.list("")
		if len(all) != len(names) {
			t.Errorf("%d names are listed; want %d", len(all), len(names))
		}
		for _, name := range names {
			l, ok := all[name]
			if !ok || l.Type != "file" || l.Size != int64(len(name)) || strings.ToValidUTF8(name, "\uFFFD") != l.Name && !strings.Contains(l.Name, "\uFFFD") {
				t.Errorf("%q is listed as %+v", name, l)
			}
			if (l.NameBytes != nil) == (strings.ToValidUTF8(name, "") == name) {
				t.Errorf("%q: name_bytes %q", name, l.NameBytes)
			}
			if got := c.get(`{"do":"get"` + path("path", name) + `}`); got != name {
				t.Errorf("%q holds %q", name, got)
			}
			if l.NameBytes == nil {
				if got := c.get(`{"do":"get","path":` + quotedJSON(name) + `}`); got != name {
					t.Errorf("%q holds %q", name, got)
				}
			}
			o := c.do(`{"do":"stat"`+path("path", name)+`}`, 213, "")
			if (o.field("name_bytes") != "") != (l.NameBytes != nil) {
				t.Errorf("stat tells %s", o.raw)
			}
			to := "moved " + name
			if len(name) == 255 {
				to = name[1:]
			}
			c.do(`{"do":"move"`+path("path", name)+path("to", to)+`}`, 250, "")
			c.do(`{"do":"touch"`+path("path", to)+`,"mtime":"2001-02-03T04:05:06Z"}`, 250, "")
			c.do(`{"do":"remove"`+path("path", to)+`}`, 250, "")
		}
		if all := c.list(`,"recursive":true`); len(all) != 0 {
			t.Errorf("left: %v", all)
		}
	})
}

// TestListRecursive: a whole tree, by paths from where it begins; links are told and not
// followed.
func TestListRecursive(t *testing.T) {
	inBox(t, "", "", func(t *testing.T, b *ftpBox) {
		var want []string
		for _, n := range []string{"t/a", "t/b/c", "t/b/d/e", "t/\xff/f"} {
			b.put(t, n, n)
			want = append(want, strings.TrimPrefix(n, "t/"))
		}
		want = append(want, "b", "b/d", "\xff", "up", "empty")
		os.Mkdir(filepath.Join(b.home, "t/empty"), 0o700)
		os.Symlink("..", filepath.Join(b.home, "t/up"))
		os.Chmod(filepath.Join(b.home, "t/a"), os.ModeSetuid|0o751)
		when := time.Date(2001, 2, 3, 4, 5, 6, 123456789, time.UTC)
		os.Chtimes(filepath.Join(b.home, "t/a"), when, when)
		c := b.dialFrames(t).enter()
		c.do(`{"do":"cd","path":"t"}`, 250, "")
		all := c.list(`,"recursive":true`)
		var got []string
		for n := range all {
			got = append(got, n)
		}
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("got  %q\nwant %q", got, want)
		}
		if a := all["a"]; a.MTime != "2001-02-03T04:05:06.123456789Z" || a.Mode != "4751" || a.Size != 3 {
			t.Errorf("%+v", a)
		}
		if e := all["empty"]; e.Type != "dir" || e.Mode != "0700" {
			t.Errorf("%+v", e)
		}
		if up := all["up"]; up.Type != "link" && up.Type != "dir" || up.Name != "up" {
			t.Errorf("%+v", up)
		}
		if flat := c.list(""); len(flat) != 5 {
			t.Errorf("%v", flat)
		}
		// stat tells the same of one name.
		o := c.do(`{"do":"stat","path":"a"}`, 213, "")
		if o.MTime != "2001-02-03T04:05:06.123456789Z" || o.Mode != "4751" || o.field("type") != `"file"` || *o.Size != 3 {
			t.Error(o.raw)
		}
	})
}

// --- changes ---

// TestMkdirAndRemoveTrees: what was cut off inside goes along, what others hold stops it.
func TestMkdirAndRemoveTrees(t *testing.T) {
	inBox(t, "", "quota_files = 100\nquota_bytes = \"1MiB\"\n", func(t *testing.T, b *ftpBox) {
		c := b.dialFrames(t).enter()
		c.do(`{"do":"mkdir","path":"a/b/c/d","recursive":true}`, 257, "")
		c.do(`{"do":"mkdir","path":"a/b/c/d","recursive":true}`, 257, "") // as mkdir -p
		c.do(`{"do":"mkdir","path":"/a/b/../x/","recursive":true}`, 257, "")
		if info, err := os.Stat(filepath.Join(b.home, "a/x")); err != nil || !info.IsDir() {
			t.Fatal(err)
		}
		c.put("a/b/f", "content", "")
		for _, name := range []string{"a/b/f", "a/b/c/new"} { // one aside, one under its name
			c.frame(frameRequest, `{"do":"put","path":"`+name+`"}`)
			c.frame(frameData, "part of it")
			c.frame(frameCancel, "")
			c.wantEnd(426, "cancelled")
		}
		if names := hiddenNames(t, b.home); len(names) != 1 {
			t.Fatalf("partials: %q", names)
		}
		c.do(`{"do":"remove","path":"a/b/f/"}`, 250, "")
		c.put("a/b/f", "content", "")
		c.do(`{"do":"remove","path":"a"}`, 550, "not_empty")
		c.do(`{"do":"remove","path":"a","recursive":true}`, 250, "")
		if entries, err := os.ReadDir(b.home); err != nil || len(entries) != 0 {
			t.Errorf("left: %v, %v", entries, err)
		}
		if o := c.do(`{"do":"usage"}`, 213, ""); o.field("bytes") != "0" || o.field("files") != "0" || o.field("quota_files") != "100" || o.field("quota_bytes") != "1048576" {
			t.Errorf("usage: %s", o.raw)
		}
	})
}

// hiddenNames are the names below dir that clients do not see.
func hiddenNames(t *testing.T, dir string) (names []string) {
	t.Helper()
	err := filepath.Walk(dir, func(p string, info os.FileInfo, err error) error {
		if err == nil && strings.HasPrefix(info.Name(), reservedPrefix) {
			names = append(names, info.Name())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// TestMoveOverAFile: a file is replaced, and the ledger knows; a directory is not.
func TestMoveOverAFile(t *testing.T) {
	inBox(t, "", "quota_bytes = \"1MiB\"\n", func(t *testing.T, b *ftpBox) {
		c := b.dialFrames(t).enter()
		c.put("a", "0123456789", "")
		c.put("b", "01234", "")
		c.do(`{"do":"mkdir","path":"d"}`, 257, "")
		c.do(`{"do":"move","path":"a","to":"b"}`, 250, "")
		if got := b.content(t, "b"); got != "0123456789" {
			t.Error(got)
		}
		c.frame(frameRequest, `{"do":"move","path":"b","to":"d"}`)
		if o := c.rest(); o.Code != 550 {
			t.Error(o.raw)
		}
		if o := c.do(`{"do":"usage"}`, 213, ""); o.field("bytes") != "10" {
			t.Errorf("usage: %s", o.raw)
		}
		b.user(t, "mover", "permissions = [\"rename\", \"list\"]\n")
		m := b.dialFrames(t).enter("mover")
		m.do(`{"do":"touch","path":"x"}`, 550, "denied")
		c.put("c", "to be kept", "")
		m.frame(frameRequest, `{"do":"move","path":"b","to":"c"}`)
		if o := m.rest(); o.Code != 550 {
			t.Errorf("replacing a file by the right to rename: %s", o.raw)
		}
		m.do(`{"do":"move","path":"b","to":"e"}`, 250, "")
	})
}

// TestTouchAndChmod: times with fractions, modes as digits, and files that are not there.
func TestTouchAndChmod(t *testing.T) {
	inBox(t, "", "quota_files = 2\n", func(t *testing.T, b *ftpBox) {
		c := b.dialFrames(t).enter()
		c.do(`{"do":"touch","path":"f","mtime":"2001-02-03T05:05:06.000000007+01:00"}`, 250, "")
		c.do(`{"do":"chmod","path":"f","mode":"640"}`, 250, "")
		if o := c.do(`{"do":"stat","path":"f"}`, 213, ""); o.MTime != "2001-02-03T04:05:06.000000007Z" || o.Mode != "0640" || *o.Size != 0 {
			t.Error(o.raw)
		}
		c.put("f", "content", "")
		c.do(`{"do":"touch","path":"f","mtime":"1970-01-01T00:00:00Z"}`, 250, "")
		if got := b.content(t, "f"); got != "content" {
			t.Errorf("touch made it %q", got)
		}
		c.do(`{"do":"touch","path":"g"}`, 250, "")
		c.do(`{"do":"touch","path":"h"}`, 552, "quota")
		b.wantMetric(t, 1, "berth_quota_rejected_total", "ann")
	})
}

// TestHashAlgorithms: all of them, by both spellings, of parts too.
func TestHashAlgorithms(t *testing.T) {
	inBox(t, "", "", func(t *testing.T, b *ftpBox) {
		b.put(t, "f", "0123456789")
		c := b.dialFrames(t).enter()
		for alg, want := range map[string]string{
			"": hexSum("0123456789"), "sha256": hexSum("0123456789"), "SHA-256": hexSum("0123456789"),
			"md5": "781e5e245d69b566979b86e28d23f2c7", "MD5": "781e5e245d69b566979b86e28d23f2c7",
			"sha1": "87acec17cd9dcd20a716cc2cf67417b71c8a7016", "crc32": "a684c7c6",
		} {
			o := c.do(`{"do":"hash","path":"f","algorithm":"`+alg+`","id":[1]}`, 213, "")
			field := strings.ToLower(strings.ReplaceAll(alg, "-", ""))
			if field == "" {
				field = "sha256"
			}
			if got := o.field(field); got != strconv.Quote(want) || string(o.ID) != "[1]" {
				t.Errorf("%q: %s; want %s", alg, o.raw, want)
			}
		}
		for r, want := range map[string]string{`"offset":3`: "3456789", `"offset":3,"size":2`: "34", `"size":0`: "", `"offset":10`: "", `"size":9223372036854775807`: "0123456789", `"offset":9,"size":9223372036854775807`: "9"} {
			if o := c.do(`{"do":"hash","path":"f",`+r+`}`, 213, ""); o.SHA256 != hexSum(want) {
				t.Errorf("%s: %s", r, o.raw)
			}
		}
	})
}

// TestShares: what is read-only stays so, whichever request tries.
func TestSharesInFrames(t *testing.T) {
	share := t.TempDir()
	for _, n := range []string{"f", "d/x"} {
		os.MkdirAll(filepath.Dir(filepath.Join(share, n)), 0o755)
		os.WriteFile(filepath.Join(share, n), []byte("shared"), 0o644)
	}
	inBox(t, "", fmt.Sprintf("shares = { public = { path = %q, write = false } }\n", share), func(t *testing.T, b *ftpBox) {
		b.put(t, "mine", "x")
		c := b.dialFrames(t).enter()
		before := snapshot(t, share)
		for _, r := range []string{`"put","path":"public/new"`, `"put","path":"public/f"`, `"put","path":"public/f","append":true`, `"mkdir","path":"public/new"`, `"mkdir","path":"public/a/b","recursive":true`,
			`"remove","path":"public/f"`, `"remove","path":"public/d","recursive":true`, `"move","path":"public/f","to":"public/g"`, `"move","path":"public/f","to":"f"`,
			`"move","path":"mine","to":"public/mine"`, `"touch","path":"public/f"`, `"touch","path":"public/new"`, `"chmod","path":"public/f","mode":"0600"`} {
			c.do(`{"do":`+r+`}`, 550, "read_only")
		}
		if all := c.list(`,"path":"/public","recursive":true`); len(all) != 3 {
			t.Errorf("%v", all)
		}
		if got := c.fetchFile("/public/d/x"); got != "shared" {
			t.Error(got)
		}
		if _, ok := c.list("")["public"]; !ok {
			t.Error("the share is not listed at the top")
		}
		if after := snapshot(t, share); after != before {
			t.Errorf("the share was\n%s\nand is\n%s", before, after)
		}
	})
}

// TestSmallTalk: echo, upper, time and usage.
func TestSmallTalk(t *testing.T) {
	inBox(t, "", "", func(t *testing.T, b *ftpBox) {
		c := b.dialFrames(t).enter()
		for _, text := range []string{"", "x", "grüße <&> \u2028", "\x00\r\n\x1b", strings.Repeat("long ", 6000)} {
			if o := c.do(`{"do":"echo","text":`+quotedJSON(text)+`}`, 200, ""); o.Text != text {
				t.Errorf("%.50q came back as %.50q", text, o.Text)
			}
		}
		for _, do := range []string{"echo", "upper"} {
			c.do(`{"do":"`+do+`","text":"`+strings.Repeat("x", 200<<10)+`"}`, 501, "bad_request")
		}
		if o := c.do(`{"do":"upper","text":"abc äöü ñ 123"}`, 200, ""); o.Text != "ABC ÄÖÜ Ñ 123" {
			t.Error(o.raw)
		}
		o := c.do(`{"do":"time"}`, 200, "")
		var at time.Time
		if err := json.Unmarshal([]byte(o.field("time")), &at); err != nil || time.Since(at) > time.Second || at.Location() != time.UTC {
			t.Error(o.raw, err)
		}
		if _, err := time.ParseInLocation(time.ANSIC, o.Text, time.Local); err != nil {
			t.Error(err)
		}
		if o := c.do(`{"do":"usage"}`, 213, ""); o.field("quota_bytes") != "0" || o.field("free") == "" {
			t.Error(o.raw)
		}
		// The log has what was asked, never a password.
		if log := b.log.String(); strings.Contains(log, "secret") {
			t.Error("the log has a password")
		}
		b.wantMetric(t, 1, "berth_control_commands_total", "upper", "2xx")
	})
}
