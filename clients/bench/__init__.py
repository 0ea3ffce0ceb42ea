"""A load test through HTTP, of this server or any that speaks OpenAI's API, alone or beside another.

    __main__    the command: options → servers → rounds in turn → report
    work        what is sent when: lengths, texts, arrivals, all from one seed
    target      a server under test: what it is called, what it refuses, its process
    load        sends a level's requests and notes their answers
    pool        sockets; notes only when bytes came, since client and server share the cores
    framing     where an HTTP/1.1 response ends
    answer      noted bytes → times, counts, errors, once the run is over
    figures     times → percentiles, throughput, goodput; rounds → medians and ratios
    report      tables, and the last line in JSON; `picture` draws

Refuses to know any model: lengths are counted by the server, everything else comes from the API and /proc.
"""
