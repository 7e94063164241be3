package main

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"io"
	"log/slog"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// hostile is a name as a user, or a stranger, might choose it.
const hostile = "</bdi></td><script>alert(1)</script><img src=x onerror=alert(2)>\" onload=\"x\x1b[2J\u202egpj.exe\u2066'&amp;\xff\n\u2028"

// statusTags are the elements of the page.
var statusTags = strings.Fields("!DOCTYPE a bdi body dd div dl dt footer h1 h2 head header html link main meta p progress small span style table tbody td th thead time title tr")

// checkPage finds what no page may have, whatever is on it.
func checkPage(t *testing.T, page string) {
	t.Helper()
	head, body, ok := strings.Cut(page, "</style>")
	_, style, ok2 := strings.Cut(head, "<style>")
	if !ok || !ok2 || style != statusStyle {
		t.Fatalf("the page has no style sheet: %.300q", page)
	}
	for _, tag := range regexp.MustCompile(`<(/?)([^ >]*)([^>]*)>`).FindAllStringSubmatch(body, -1) {
		if !slices.Contains(statusTags, tag[2]) {
			t.Errorf("the page has %q", tag[0])
		}
		for _, attr := range regexp.MustCompile(`([a-z-]+)="[^"]*"`).FindAllStringSubmatch(tag[3], -1) {
			if attr[1] == "style" || strings.HasPrefix(attr[1], "on") {
				t.Errorf("the page has %q", tag[0])
			}
		}
	}
	for _, bad := range []string{"\x1b", "\u202e", "\u2066", "\u2028", "\xff", "onerror=alert(2)>", "<script"} {
		if strings.Contains(body, bad) {
			t.Errorf("the page has %q", bad)
		}
	}
	// Every table has headings with a scope, and a name.
	if n := strings.Count(page, "<table>"); n != strings.Count(page, "<h2 id=") || n != strings.Count(page, "aria-labelledby=") || strings.Contains(page, "<th>") {
		t.Errorf("%d tables without headings", n)
	}
	if n := strings.Count(body, "<progress"); n != strings.Count(body, "aria-label=") {
		t.Errorf("%d bars, some without a label", n)
	}
}

func pageOf(r *statusReport, refresh int) string {
	a := &httpAnswer{}
	(&htmlPage{&a.body}).status(r, refresh)
	return a.body.String()
}

func TestStatusPageEscapes(t *testing.T) {
	now := time.Date(2026, 11, 21, 20, 0, 0, 0, time.UTC)
	r := &statusReport{Name: hostile, Version: hostile, Time: jsonTime(now), State: "not_ready", Reason: hostile, ConfigRefused: hostile, named: true, now: now,
		Sessions: []whoEntry{{ID: 1, User: hostile, Protocol: "ftp", Address: hostile, Doing: hostile, Verb: "STOR", File: hostile, Bytes: 5, Size: 3, Rate: 1}},
		moving:   1, Transfers: 1, Open: 1, Users: []statusUser{{User: hostile, UsedBytes: 99, QuotaBytes: 100, UsedFiles: -1, QuotaFiles: 7}},
		Recent: []recentEvent{{Level: "warn", Message: hostile, Detail: hostile, Count: 2, at: now}}}
	page := pageOf(r, 5)
	checkPage(t, page)
	if !strings.Contains(html.UnescapeString(page), "<script>alert(1)</script>") {
		t.Error("the name is not shown as it is")
	}
	if n := strings.Count(page, `value="3"`); n != 1 { // more than all of it cannot be
		t.Errorf("%d bars at their end", n)
	}
	if !strings.Contains(page, `class="hot"`) {
		t.Error("a quota that is nearly full looks like any other")
	}
}

// A page of a busy box with a running transfer, from the daemon itself.
func TestStatusPage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newFTPBox(t, "", "quota_bytes = \"1MiB\"\nquota_files = 10\ndownload_rate = \"1KiB\"\n")
		first := b.dial(t).login()
		for name, size := range map[string]int{"a<b>.bin": 64 << 10, "b.bin": 900 << 10} {
			if got := first.store("STOR "+name, strings.Repeat("x", size)); !strings.HasPrefix(got, "226") {
				t.Fatal(got)
			}
		}
		c := b.dial(t).login()
		c.cmd("EPSV", "229 *")
		d := c.open()
		c.cmd("RETR a<b>.bin", "150 *")
		go io.Copy(io.Discard, d)
		time.Sleep(32 * time.Second)
		b.srv.log.Error("disk on fire", "path", "/dev/<sda>")
		b.srv.mu.Lock()
		b.srv.refused = "line 7 is wrong"
		b.srv.mu.Unlock()

		a := b.ask(t, "/", visitor{})
		page := a.body.String()
		checkPage(t, page)
		for _, want := range []string{
			`<meta name="viewport"`, `>ready</span>`, "a&lt;b&gt;.bin", "RETR ann", `max="65536" value="`, " of 64.0 KiB, 50\u00a0%", "B/s<small>", " left</small>",
			"964 KiB of 1.00 MiB", `<progress class="hot" max="1048576"`, "2 of 10", "disk on fire", "path=/dev/&lt;sda&gt;", "The last reload was refused",
			"line 7 is wrong", testPeer.String(), "certificate not valid yet", // it is of 2026, and the bubble's year 2000
		} {
			if !strings.Contains(page, want) {
				t.Errorf("the page lacks %q:\n%s", want, page[strings.Index(page, "<body>"):])
			}
		}
		sum := sha256.Sum256([]byte(statusStyle))
		policy := a.header.values("Content-Security-Policy")
		if len(policy) != 1 || !strings.HasPrefix(policy[0], "default-src 'none'; style-src 'sha256-"+base64.StdEncoding.EncodeToString(sum[:])+"'; ") {
			t.Errorf("Content-Security-Policy %q", policy)
		}

		var r statusReport
		a = b.ask(t, "/?format=json", visitor{})
		if err := json.Unmarshal(a.body.Bytes(), &r); err != nil || a.header.values("Content-Type")[0] != "application/json" {
			t.Fatalf("%v, %v", err, a.header)
		}
		if len(r.Sessions) != 2 || r.Sessions[0].File != "/a<b>.bin" || r.Sessions[0].Size != 64<<10 || r.Sessions[0].Bytes < 30<<10 || r.Sessions[1].Doing != "idle" ||
			r.Transfers != 1 || r.Open != 2 || len(r.Users) != 1 || r.Users[0].UsedFiles != 2 || len(r.Recent) != 2 || r.Recent[0].Level != "error" || r.State != "ready" ||
			!strings.Contains(a.body.String(), `"reason":"",`) || !strings.Contains(a.body.String(), `"counting":false`) { // names are there whatever they say
			t.Errorf("JSON: %s", a.body.Bytes())
		}
		c.bare.Close()
		d.Close()
	})
}

// metrics.per_user = false hides who is there and what he has, and nothing else.
func TestStatusPageWithoutNames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newFTPBox(t, "metrics.per_user = false\n", "download_rate = \"1KiB\"\n")
		b.put(t, "diary.txt", strings.Repeat("x", 64<<10))
		c := b.dial(t).login()
		c.cmd("EPSV", "229 *")
		d := c.open()
		c.cmd("RETR diary.txt", "150 *")
		go io.Copy(io.Discard, d)
		time.Sleep(10 * time.Second)
		b.srv.log.Error("disk on fire", "user", "ann")
		b.srv.mu.Lock()
		b.srv.refused = "users.d/ann.toml: wrong"
		b.srv.mu.Unlock()
		for _, target := range []string{"/", "/?format=json"} {
			page := b.ask(t, target, visitor{}).body.String()
			if regexp.MustCompile(`\bann\b`).MatchString(page) || strings.Contains(page, "diary") {
				t.Errorf("%s names a user or his file:\n%s", target, page)
			}
			for _, want := range []string{"disk on fire", "RETR", testPeer.String(), "the log says why"} {
				if !strings.Contains(page, want) {
					t.Errorf("%s lacks %q", target, want)
				}
			}
		}
		checkPage(t, b.ask(t, "/", visitor{}).body.String())
		c.bare.Close()
		d.Close()
	})
}

// A thousand sessions and users are no page of megabytes, and those that move
// something come first.
func TestStatusPageIsBounded(t *testing.T) {
	b := newFTPBox(t, "", "")
	for i := range 3 * statusRows {
		s := &session{srv: b.srv, id: uint64(i + 1), user: &user{Name: fmt.Sprint("u", i)}, proto: "ftp", peer: testPeer, started: time.Now()}
		if i == 2*statusRows {
			s.verb, s.xfer = "RETR", newTransfer(time.Minute, nil)
			s.xfer.file = "/" + strings.Repeat("very/long/", 400) + "end"
		}
		b.srv.sessions[s.id] = s
	}
	defer clear(b.srv.sessions)
	r := b.srv.report()
	if len(r.Sessions) != statusRows || r.MoreSess != 2*statusRows || r.Transfers != 1 || r.moving != 1 || r.Sessions[0].Verb != "RETR" || r.Open != 3*statusRows {
		t.Errorf("%d sessions, %d more, %d transfers", len(r.Sessions), r.MoreSess, r.Transfers)
	}
	for i := range 5 * statusRows {
		r.Users = append(r.Users, statusUser{User: fmt.Sprint("u", i)})
	}
	r.Users, r.MoreUsers = r.Users[:statusRows], 4*statusRows
	page := pageOf(r, 0)
	checkPage(t, page)
	if len(page) > 100<<10 || !strings.Contains(page, "And 200 more.") || !strings.Contains(page, "And 400 more.") || !strings.Contains(page, "very/long/end<") {
		t.Errorf("%d bytes", len(page))
	}
}

// Who hangs on a disk holds up no more than a few, and nobody who asks for another page.
func TestStatusPagesInFlight(t *testing.T) {
	b := newFTPBox(t, "", "")
	for range statusInFlight {
		b.srv.pages.making <- struct{}{}
	}
	if a := b.ask(t, "/", visitor{}); a.status != 503 {
		t.Errorf("one page too many: %d", a.status)
	}
	if a := b.ask(t, "/healthz", visitor{}); a.status != 200 {
		t.Errorf("/healthz beside them: %d", a.status)
	}
}

// docs/protocol.md lists every name of the JSON, and no other.
func TestStatusJSONIsDocumented(t *testing.T) {
	var want map[string]any
	if err := json.Unmarshal(encodeJSON(newFTPBox(t, "", "").srv.report()), &want); err != nil {
		t.Fatal(err)
	}
	want["reason"], want["config_refused"] = "", "" // left out where there is none
	documented := map[string]bool{}
	for _, line := range readProtocol(t).sections["The status page as JSON"] {
		cells := strings.Split(line, "|")
		if len(cells) < 3 {
			continue
		}
		for _, m := range regexp.MustCompile("`([a-z_]+)`").FindAllStringSubmatch(cells[1], -1) {
			documented[m[1]] = true
		}
	}
	for _, list := range []any{statusPorts{}, statusUser{Counting: true}, recentEvent{Detail: "x"}} {
		var names map[string]any
		if err := json.Unmarshal(encodeJSON(list), &names); err != nil {
			t.Fatal(err)
		}
		maps.Copy(want, names)
	}
	section := strings.Join(readProtocol(t).sections["The status page as JSON"], "\n")
	for name := range want {
		if !strings.Contains(section, "`"+name+"`") {
			t.Errorf("docs/protocol.md lacks %s", name)
		}
	}
	for name := range documented {
		if _, ok := want[name]; !ok {
			t.Errorf("docs/protocol.md has %s, the program does not", name)
		}
	}
}

// --- recent.go ---

func TestRecentLog(t *testing.T) {
	var written strings.Builder
	recent := newRecentLog(slog.NewTextHandler(&written, nil))
	log := slog.New(recent)
	log.Info("nobody needs this")
	log.Error("disk on fire", "path", "/a b", "error", errors.New("it \"burns\""), "stack", "goroutine 1", "dur", time.Second)
	for i := range 1000 { // a stranger pushes nothing out
		log.With("user", "ann").Warn("login failed", "n", i)
	}
	all := recent.events.list()
	if len(all) != 2 || all[0].Message != "login failed" || all[0].Count != 1000 || all[0].Detail != "user=ann n=999" || all[0].Level != "warn" ||
		all[1].Detail != `path="/a b" error="it \"burns\"" dur=1s` || all[1].Count != 1 {
		t.Errorf("%+v", all)
	}
	if n := strings.Count(written.String(), "\n"); n != 1002 {
		t.Errorf("%d lines were written", n)
	}
	for i := range 3 * recentKept {
		log.Warn(fmt.Sprint("message ", i), "long", strings.Repeat("é", 1000))
	}
	if all = recent.events.list(); len(all) != recentKept || all[0].Message != fmt.Sprint("message ", 3*recentKept-1) || len(all[0].Detail) > recentText {
		t.Errorf("%d kept: %+v", len(all), all[0])
	}
}
