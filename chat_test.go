package main

// Messages between sessions, seen from outside: order, who hears what, a listener that
// does not read, and what FTP's front end sees of it.

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// heard reads one message.
func (f *frameClient) heard() (m messageFrame) {
	f.t.Helper()
	k, p := f.next()
	if err := json.Unmarshal([]byte(p), &m); k != frameMessage || err != nil {
		f.fatalf("%s %.200q, %v; want a message", k, p, err)
	}
	return m
}

func (f *frameClient) listen() *frameClient {
	f.t.Helper()
	f.do(`{"do":"listen"}`, 200, "")
	return f
}

// TestChatOrder: several speakers at once; all who listen hear the same in the same order.
func TestChatOrder(t *testing.T) {
	inBox(t, "", "", func(t *testing.T, b *ftpBox) {
		const speakers, each = 4, sayBurst
		var all []*frameClient
		for range 3 {
			all = append(all, b.dialFrames(t).enter().listen())
		}
		deaf := b.dialFrames(t).enter()
		for i := range speakers {
			name := fmt.Sprintf("s%d", i)
			b.user(t, name, "")
			c := b.dialFrames(t).enter(name)
			go func() {
				for n := range each {
					c.frame(frameRequest, fmt.Sprintf(`{"do":"say","text":"%d"}`, n))
				}
			}()
		}
		var first []messageFrame
		for i, c := range all {
			next := map[string]int{}
			for n := range speakers * each {
				m := c.heard()
				if m.Lost != 0 || m.Text != fmt.Sprint(next[m.From]) {
					t.Fatalf("%+v where %d of it was due", m, next[m.From])
				}
				next[m.From]++
				if i == 0 {
					first = append(first, m)
				} else if m != first[n] {
					t.Fatalf("listener %d hears %+v as message %d; the first heard %+v", i, m, n, first[n])
				}
			}
			c.quiet()
		}
		deaf.quiet()
		all[0].do(`{"do":"listen","off":true}`, 200, "")
		deaf.do(`{"do":"say","text":"bye"}`, 200, "")
		all[0].quiet()
		if m := all[1].heard(); m.Text != "bye" || m.From != "ann" {
			t.Errorf("%+v", m)
		}
	})
}

// TestChatWhileBusy: messages come between the frames of a request, and harm none.
func TestChatWhileBusy(t *testing.T) {
	frameWays(t, "", "", func(t *testing.T, b *ftpBox, c *frameClient) {
		data := string(testBytes(8 << 20))
		b.put(t, "big", data)
		c.listen()
		c.frame(frameRequest, `{"do":"get","path":"big"}`)
		for i := range 50 {
			b.srv.chat.say("bob", fmt.Sprint(i))
		}
		o := c.wantEnd(226, "")
		if string(o.data) != data {
			t.Fatal("the file came otherwise")
		}
		for range 50 - len(o.other) {
			c.heard()
		}
		c.frame(frameRequest, `{"do":"put","path":"new"}`)
		b.srv.chat.say("bob", "during a put")
		c.frame(frameData, "x")
		c.frame(frameEnd, "")
		if o := c.wantEnd(226, ""); len(o.other) == 0 {
			c.heard()
		}
		c.do(`{"do":"time"}`, 200, "")
	})
}

// TestChatSlowListener: one who does not read loses the oldest messages and is told how
// many; nobody waits for him.
func TestChatSlowListener(t *testing.T) {
	inBox(t, "", "", func(t *testing.T, b *ftpBox) {
		slow, quick := b.dialFrames(t).enter().listen(), b.dialFrames(t).enter().listen()
		text := strings.Repeat("x", 900) + " "
		const n = 400
		start := time.Now()
		for i := range n {
			b.srv.chat.say("bob", text+fmt.Sprint(i))
			if m := quick.heard(); m.Text != text+fmt.Sprint(i) || m.Lost != 0 {
				t.Fatalf("%.20q, %d lost", m.Text, m.Lost)
			}
		}
		if d := time.Since(start); d > 0 {
			t.Errorf("it held others up for %v", d)
		}
		seen, lost, last := 0, 0, -1
		for seen+lost < n {
			m := slow.heard()
			var i int
			fmt.Sscan(strings.TrimPrefix(m.Text, text), &i)
			lost += m.Lost
			if seen++; i != last+1+m.Lost {
				t.Fatalf("message %d behind %d with %d lost", i, last, m.Lost)
			}
			last = i
		}
		if lost == 0 || last != n-1 || seen < chatKept {
			t.Errorf("%d messages came, %d were lost, the last is %d", seen, lost, last)
		}
		slow.quiet()
		slow.do(`{"do":"time"}`, 200, "")
	})
}

// TestChatRate: a user may say so much, over all his sessions and both front ends.
func TestChatRate(t *testing.T) {
	inBox(t, "", "", func(t *testing.T, b *ftpBox) {
		c, l := b.dialFrames(t).enter(), b.dial(t).login()
		for range sayBurst / 2 {
			c.do(`{"do":"say","text":"x"}`, 200, "")
			l.cmd("SITE SAY x", "200 Said.")
		}
		c.do(`{"do":"say","text":"x"}`, 450, "rate")
		l.cmd("SITE SAY x", "450 *")
		b.user(t, "bob", "")
		b.dialFrames(t).enter("bob").do(`{"do":"say","text":"x"}`, 200, "")
		time.Sleep(sayEvery)
		c.do(`{"do":"say","text":"x"}`, 200, "")
		c.do(`{"do":"say","text":"x"}`, 450, "rate")
	})
}

// TestChatText: what could act on a terminal, or be another's line, is shown instead.
func TestChatText(t *testing.T) {
	inBox(t, "", "", func(t *testing.T, b *ftpBox) {
		c, l := b.dialFrames(t).enter().listen(), b.dial(t).login()
		for _, text := range []string{"plain", "grüße", "two\nlines\r\n200 Forged.", "\x1b]0;title\a", "nul\x00", "del\x7f", "quote\"", strings.Repeat("ü", maxSaid/2)} {
			c.frame(frameRequest, `{"do":"say","text":`+quotedJSON(text)+`}`)
			got := ""
			if o := c.wantEnd(200, ""); len(o.other) == 0 {
				got = c.heard().Text
			} else {
				var m messageFrame
				json.Unmarshal([]byte(o.other[0].payload), &m)
				got = m.Text
			}
			if strings.ContainsFunc(got, func(r rune) bool { return r < ' ' || r == 0x7f }) {
				t.Errorf("%q is sent as %q", text, got)
			}
			if text == "plain" || text == "grüße" || text == "quote\"" {
				if got != text {
					t.Errorf("%q became %q", text, got)
				}
			}
			l.send("SITE SAY\r\n")
			code, all := l.reply()
			if lines := strings.Split(all, "\n"); code != 200 || len(lines) != 3 || !strings.HasSuffix(lines[1], "ann: "+got) || !strings.HasPrefix(lines[1], " ") {
				t.Errorf("SITE SAY shows %q", all)
			}
			time.Sleep(sayEvery)
		}
	})
}

// TestChatFrontEnds: what is said by SITE SAY is heard over frames, and the reverse; it
// is shown once, and what is too old is told of.
func TestChatFrontEnds(t *testing.T) {
	inBox(t, "", "", func(t *testing.T, b *ftpBox) {
		c, l := b.dialFrames(t).enter().listen(), b.dial(t).login()
		l.cmd("SITE SAY hello frames", "200 Said.")
		if m := c.heard(); m.From != "ann" || m.Text != "hello frames" {
			t.Errorf("%+v", m)
		}
		b.srv.chat.say("bob", "hello lines")
		l.send("SITE SAY\r\n")
		if _, all := l.reply(); !wildcard("200-*\n *ann: hello frames\n *bob: hello lines\n200 *", all) {
			t.Errorf("%q", all)
		}
		l.cmd("SITE SAY", "200-*", "200 *")
		for i := range chatKept + 5 {
			b.srv.chat.say("bob", fmt.Sprint(i))
		}
		l.send("SITE SAY\r\n")
		if _, all := l.reply(); !wildcard("200-*\n (5 earlier messages are not kept)\n *bob: 5\n*bob: 104\n200 *", all) {
			t.Errorf("%.300q", all)
		}
	})
}

// TestWho: names, front ends and what they do; addresses are the operator's to know.
func TestWho(t *testing.T) {
	local := filepath.Join(t.TempDir(), "s")
	b := newFTPBox(t, fmt.Sprintf("limits.data_timeout = \"15s\"\nserver.drain = \"5s\"\nlisten = { control = [\"127.0.0.1:0\"], datagram = [], http = [], local = [%q] }\n", local), "")
	b.user(t, "bob", "")
	var addr net.Addr
	for _, a := range b.serveReal(t) {
		if a.Network() == "tcp" {
			addr = a
		}
	}
	enter := func(c *ftpClient, name string) *frameClient {
		c.want("220 *")
		return c.frames().enter(name)
	}
	ann, op := enter(b.dialReal(t, addr), "ann"), enter(b.dialLocal(t, local), "bob")
	line := b.dialReal(t, addr).login()
	stranger := b.dialReal(t, addr) // not logged in: nobody's business
	stranger.want("220 *")
	who := func(c *frameClient) (all []whoEntry) {
		t.Helper()
		for text := range strings.Lines(string(c.do(`{"do":"who"}`, 226, "").data)) {
			var w whoEntry
			if err := json.Unmarshal([]byte(text), &w); err != nil {
				t.Fatal(text, err)
			}
			all = append(all, w)
		}
		return all
	}
	for _, c := range []*frameClient{ann, op} {
		all := who(c)
		if len(all) != 3 {
			t.Fatalf("%+v", all)
		}
		for i, want := range []whoEntry{{User: "ann", Protocol: "frames", Address: "127.0.0.1"}, {User: "bob", Protocol: "local", Address: "local"}, {User: "ann", Protocol: "ftp", Address: "127.0.0.1"}} {
			if c == ann {
				want.Address = ""
			}
			w := all[i]
			if _, err := time.Parse(time.RFC3339, w.Since); err != nil || w.User != want.User || w.Protocol != want.Protocol || w.Address != want.Address || w.ID == 0 {
				t.Errorf("%+v; want %+v", w, want)
			}
		}
	}
	line.send("SITE WHO\r\n")
	if _, all := line.reply(); strings.Contains(all, "127.0.0.1") || strings.Count(all, "\n") != 4 {
		t.Errorf("%q", all)
	}

	// What a session works on is the operator's to know, and its own user's.
	bob := enter(b.dialReal(t, addr), "bob")
	ann.frame(frameRequest, `{"do":"put","path":"secret/plan","size":3}`)
	ann.wantFrame(frameAnswer, `{"code":550,*`)
	ann.frame(frameRequest, `{"do":"put","path":"plan","size":8}`)
	ann.wantFrame(frameAnswer, `{"code":150,*`)
	ann.frame(frameData, "half")
	waitUntil(t, "half to be there", func() bool { return who(op)[0].Bytes == 4 })
	for name, c := range map[string]*frameClient{"the operator": op, "bob": bob} {
		want := whoEntry{ID: 1, User: "ann", Protocol: "frames", Doing: "put 4 bytes", Verb: "put", Bytes: 4, Size: 8, Rate: 4}
		if c == op {
			want.Doing, want.File, want.Address = "put /plan 4 bytes", "/plan", "127.0.0.1"
		}
		got := who(c)[0]
		got.Since = ""
		if got.Rate = min(got.Rate, 4); got != want && got.Rate != 0 { // 0: the machine stood still for seconds
			t.Errorf("%s is told %+v; want %+v", name, got, want)
		}
	}
	for c, want := range map[*ftpClient]bool{line: true, b.dialReal(t, addr): false} {
		if !want {
			c.want("220 *")
			c.cmd("USER bob", "331 *")
			c.cmd("PASS secret", "230 *")
		}
		c.send("SITE WHO\r\n")
		if _, all := c.reply(); strings.Contains(all, "plan") != want || !strings.Contains(all, "4 bytes") {
			t.Errorf("SITE WHO tells %q; the name is to be there: %v", all, want)
		}
		if !want {
			c.cmd("QUIT", "221 *")
		}
	}
	ann.frame(frameData, "done")
	ann.frame(frameEnd, "")
	ann.wantFrame(frameAnswer, `{"code":226,*`)
	if e := who(op)[0]; e.Doing != "idle" || e.Verb != "" || e.File != "" || e.Bytes != 0 {
		t.Errorf("who is idle does %+v", e)
	}
	bob.do(`{"do":"quit"}`, 221, "")

	// The operator's requests.
	op.do(`{"do":"kick"}`, 501, "bad_request")
	for _, id := range []uint64{who(op)[1].ID, 1 << 60} { // himself, and nobody
		op.do(fmt.Sprintf(`{"do":"kick","session":%d}`, id), 550, "not_found")
	}
	op.do(`{"do":"wall"}`, 501, "bad_request")
	op.do(`{"do":"wall","text":"maintenance\u001b"}`, 200, "")
	if m := ann.heard(); m.From != "operator" || strings.Contains(m.Text, "\x1b") {
		t.Errorf("%+v", m)
	}
	line.send("SITE SAY\r\n") // nobody can tell FTP what it did not ask for
	if _, all := line.reply(); !strings.Contains(all, " operator: maintenance?\n") {
		t.Errorf("SITE SAY tells %q", all)
	}
	op.do(fmt.Sprintf(`{"do":"wall","text":%q}`, strings.Repeat("x", maxSaid+1)), 501, "bad_request")
	op.do(`{"do":"reload"}`, 200, "")
	ann.frame(frameRequest, `{"do":"put","path":"f"}`)
	ann.wantFrame(frameAnswer, `{"code":150,*`)
	ann.frame(frameData, "part")
	op.do(fmt.Sprintf(`{"do":"kick","session":%d}`, who(op)[0].ID), 250, "")
	ann.conn.SetReadDeadline(time.Now().Add(replyTime))
	for { // ended at once, and without ceremony
		if _, _, err := ann.take(replyTime); err != nil {
			break
		}
	}
	waitUntil(t, "the session to go", func() bool { return len(who(op)) == 2 })
	// What he sent may not have been read yet.
	if got, err := os.ReadFile(filepath.Join(b.home, "f")); !errors.Is(err, os.ErrNotExist) && string(got) != "part" && string(got) != "" {
		t.Errorf("%q, %v", got, err)
	}
}

// TestChatEnds: a listener that is gone is no listener.
func TestChatEnds(t *testing.T) {
	inBox(t, "", "", func(t *testing.T, b *ftpBox) {
		for range 10 {
			c := b.dialFrames(t).enter().listen()
			c.listen() // twice is once
			b.srv.chat.say("bob", "x")
			c.heard()
			c.quiet()
			c.bare.Close()
			<-c.over
		}
		synctest.Wait()
		b.srv.chat.say("bob", "nobody hears it")
		b.srv.chat.mu.Lock()
		defer b.srv.chat.mu.Unlock()
		if n := len(b.srv.chat.listeners); n != 0 {
			t.Errorf("%d listeners are left", n)
		}
	})
}
