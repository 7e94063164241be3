package main

// Frames of any kind to whole sessions. What the codec makes of bytes is FuzzFrame's.

import (
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"
)

// FuzzRequest gives a payload to the parser, and all that the fuzzer makes of a golden
// session to a real one that is logged in. It must end when the client does, without a
// panic, touch nothing outside the home, and send nothing but whole frames, answers among
// them that every client can read.
func FuzzRequest(f *testing.F) {
	for _, in := range frameInputs(f) {
		f.Add(in)
	}
	for do, row := range requestRows {
		in := appendFrame(nil, frameRequest, []byte(`{"do":"`+do+`","id":1`+row.more+`}`))
		if row.data != "" {
			in = appendFrame(appendFrame(in, frameData, []byte(row.data)), frameEnd, nil)
		}
		f.Add(appendFrame(in, frameCancel, nil))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, frame := range plainFrames(data) {
			if _, bad, err := parseRequest([]byte(frame.payload)); bad != "" && err != nil {
				t.Fatalf("%q is both wrong and none: %s, %v", frame.payload, bad, err)
			}
		}
		synctest.Test(t, func(t *testing.T) {
			b := newFTPBox(t, "limits.data_timeout = \"2s\"\n", "quota_bytes = \"1MiB\"\nquota_files = 50\n")
			b.put(t, "a", "0123456789")
			b.put(t, "d/inner", "x")
			outside := func() string {
				return snapshot(t, filepath.Join(b.dir, "state")) + snapshot(t, filepath.Join(b.dir, "users.d"))
			}
			before := outside()
			c := b.dialFrames(t).enter()
			go func() {
				c.conn.SetWriteDeadline(time.Now().Add(time.Hour))
				c.conn.Write(data) // fails if the session ends before its input does
				c.bare.(*memConn).CloseWrite()
			}()
			for {
				k, p, err := c.take(24 * time.Hour)
				if err == io.EOF {
					break
				}
				if err != nil {
					t.Fatalf("half a frame, or no end: %s, %v", k, err)
				}
				var a frameReply
				switch k {
				case frameAnswer:
					if err := json.Unmarshal(p, &a); err != nil || a.Code < 100 || a.Code > 599 || a.Text == "" && a.Code != 200 {
						t.Fatalf("answer %.300q: %v", p, err)
					}
				case frameData, frameEnd, framePing, frameMessage:
				default:
					t.Fatalf("a frame of type %s", k)
				}
			}
			c.bare.Close()
			<-c.over
			if n := b.metric(t, "berth_panics_total"); n != 0 {
				t.Fatalf("panic:\n%s", b.log)
			}
			if after := outside(); after != before {
				t.Fatalf("outside the home\n%s\nbecame\n%s", before, after)
			}
			if entries, err := os.ReadDir(b.dir); err != nil || len(entries) != 4 { // berth.toml, home, state, users.d
				t.Fatalf("beside the home: %v, %v", entries, err)
			}
		})
	})
}
