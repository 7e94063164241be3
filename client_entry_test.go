package main

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// listLine is e as the server writes it.
func listLine(e *treeEntry) []byte {
	kinds := map[byte]uint32{'f': 0o100000, 'd': 0o040000, 'l': 0o120000, 'o': 0o010000}
	s := entry{link: e.target, mode: e.mode | kinds[e.kind], size: e.size, sec: floorDiv(e.mtime, 1e9), nsec: e.mtime - floorDiv(e.mtime, 1e9)*1e9}
	return append(appendFields([]byte{'{'}, e.name, &s), '}')
}

func TestParseListLine(t *testing.T) {
	noon := time.Date(2026, 11, 21, 12, 0, 0, 250_000_000, time.UTC).UnixNano()
	for _, e := range []treeEntry{
		{name: "a", kind: 'f', size: 12, mtime: noon, mode: 0o644},
		{name: "dir/sub", kind: 'd', size: 4096, mtime: noon + 1, mode: 0o2755},
		{name: "l", kind: 'l', target: "../a", mtime: 0, mode: 0o777},
		{name: "l", kind: 'l', target: "a\"\xff"[:2], mtime: 5, mode: 0o777},
		{name: "fifo", kind: 'o', mtime: -1, mode: 0},
		{name: `quote"back\slash`, kind: 'f', size: 1 << 60, mtime: noon},
		{name: "grüße\u2028", kind: 'f', mtime: 1},
		{name: "not\xffutf8", kind: 'f', mtime: time.Date(1969, 2, 28, 23, 59, 59, 999_999_999, time.UTC).UnixNano()},
		{name: "tab\t", kind: 'f', mtime: time.Date(2024, 2, 29, 0, 0, 0, 0, time.UTC).UnixNano()},
		{name: "old", kind: 'f', mtime: time.Date(1700, 3, 1, 0, 0, 0, 0, time.UTC).UnixNano()},
		{name: "late", kind: 'f', mtime: time.Date(2200, 12, 31, 23, 59, 59, 0, time.UTC).UnixNano()},
	} {
		line := listLine(&e)
		kept := slices.Clone(line)
		var got treeEntry
		if err := parseListLine(line, &got); err != nil {
			t.Fatalf("%s: %v", kept, err)
		}
		clear(line) // nothing of it may be kept
		if got != e {
			t.Errorf("%s:\ngot  %+v\nwant %+v", kept, got, e)
		}
	}
	var e treeEntry
	for _, c := range []struct{ line, want string }{
		{`{"type":"file","name":"x","more":[1]}`, `{x f}`},
		{`{"name":"a","name_bytes":"/2E=","type":"dir"}`, "{\xffa d}"},
		{`{"name":"a","type":"door","size":0,"mtime":"2026-11-21T12:00:00Z","mode":"0644"}`, `{a o}`},
		{`{"name":"a","type":"file","size":007,"mtime":"2026-11-21T12:00:00Z","mode":"0644"}`, ""},
		{`{"name":"a","type":"file","size":7,"mtime":"2026-02-30T12:00:00Z","mode":"0644"}`, ""},
		{`{"name":"a","type":"file","size":7,"mtime":"2026-11-21T12:00:00Z","mode":"rwx"}`, ""},
		{`{"name":"a","type":"file","size":-7}`, ""},
		{`{"type":"file"}`, ""},
		{`{}`, ""},
		{`[]`, ""},
		{``, ""},
		{"{\"name\":\"a\nb\"}", ""},
	} {
		err := parseListLine([]byte(c.line), &e)
		got := fmt.Sprintf("{%s %c}", e.name, e.kind)
		if err != nil {
			got = ""
		}
		if got != c.want {
			t.Errorf("%s: got %q, %v", c.line, got, err)
		}
	}
}

func FuzzListLine(f *testing.F) {
	for _, s := range []string{
		`{"name":"a b","type":"link","size":12,"mtime":"2026-11-21T12:00:00.123456789Z","mode":"0777","target":"x"}`,
		`{"name":"a","name_bytes":"/2E=","type":"dir","size":0,"mtime":"0000-01-01T00:00:00Z","mode":"0"}`,
		`{"name":"é\u00e9","type":"file","size":-1,"mtime":"9999-12-31T23:59:59Z","mode":"7777"}`,
		`{"name":"a","type":"file","size":1,"mtime":"0001-01-01T00:00:00Z","mode":"0644"}`,
		`{"name":"a","type":"file","size":1,"mtime":"2100-02-29T00:00:00.5Z","mode":"0644"}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		var quick, slow treeEntry
		if !scanListLine(line, &quick) {
			return
		}
		if err := decodeListLine(line, &slow); err != nil || quick != slow {
			t.Fatalf("%s:\nquick %+v\nslow  %+v %v", line, quick, slow, err)
		}
	})
}

// TestScanTime compares with package time for a day of every month of 10,000 years.
func TestScanTime(t *testing.T) {
	for year := range 10000 {
		for month := 1; month <= 12; month++ {
			when := time.Date(year, time.Month(month), 1+(year*7+month*3)%28, year%24, month*4, year%60, year*month, time.UTC)
			text, got := when.Format(time.RFC3339Nano), int64(0)
			if !scanTime([]byte(text), &got) && !when.IsZero() {
				t.Fatalf("%s is not read", text)
			}
			if want := nanoTime(when.Unix(), int64(when.Nanosecond())); got != want {
				t.Fatalf("%s: got %d, want %d", text, got, want)
			}
		}
	}
	for _, bad := range []string{"", "Z", "2026-13-01T00:00:00Z", "2026-00-01T00:00:00Z", "2026-01-00T00:00:00Z", "2026-01-01T24:00:00Z", "2026-01-01T00:60:00Z", "2026-01-01T00:00:60Z",
		"2026-01-01T00:00:00", "2026-01-01T00:00:00+01:00", "2026-01-01T00:00:00.Z", "2026-01-01T00:00:00.1234567890Z", "2026-01-01T00:00:00,5Z", "2026-01-01 00:00:00Z", "2026-02-29T00:00:00Z", "2026-01-31T00:00:00.x5Z"} {
		if got := int64(0); scanTime([]byte(bad), &got) {
			t.Errorf("%q is read as %d", bad, got)
		}
	}
}

func TestBadRemoteName(t *testing.T) {
	for _, good := range []string{"a", "a/b", "...", "..a/b.", ".hidden", "é", "a\xff", " ", "~", "-rf", strings.Repeat("x", 255), ".berth"} {
		if why := badRemoteName(good); why != "" {
			t.Errorf("%q: %s", good, why)
		}
	}
	for _, bad := range []string{"", "/", "/a", "a/", "a//b", ".", "..", "../a", "a/../b", "a/..", "a/./b", "a\x00", "a\nb", "\x1b[2J", "a\x7f", strings.Repeat("x", 256), ".berth-x", "a/.berth-x/b", ".BERTH-x"} {
		if badRemoteName(bad) == "" {
			t.Errorf("%q is taken", bad)
		}
	}
}

func BenchmarkParseListLine(b *testing.B) {
	line := listLine(&treeEntry{name: "photos/2026/11/IMG_20261121_120000.jpg", kind: 'f', size: 3_456_789, mtime: 1_795_262_400_123_456_789, mode: 0o644})
	var e treeEntry
	b.Run("scan", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			parseListLine(line, &e)
		}
	})
	b.Run("json", func(b *testing.B) {
		for b.Loop() {
			decodeListLine(line, &e)
		}
	})
}
