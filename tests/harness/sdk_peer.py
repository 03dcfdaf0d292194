"""A process that is one unmodified `wsocket-io` client: commands as JSON lines on stdin, events as JSON lines on stdout.

Run by test_sdk_python.py. Nothing of the SDK is replaced or reached into; only its public calls are used.
"""

import asyncio
import json
import sys

from wsocket import create_client
from wsocket.client import WSocketOptions


def say(event, **fields):
    print(json.dumps({"event": event, **fields}), flush=True)


async def main(url, key, options):
    client = create_client(url, key, WSocketOptions(**options))
    client.on("state", lambda state, before: say("state", state=state))
    client.on("subscribed", lambda channel: say("subscribed", channel=channel))
    client.on("unsubscribed", lambda channel: say("unsubscribed", channel=channel))
    client.on("ack", lambda id, channel: say("ack", id=id, channel=channel))
    client.on("error", lambda error: say("error", text=str(error)))
    try:
        await client.connect()
    except Exception as error:
        say("refused", text=str(error))
        return

    def listen(name, rewind=None):
        channel = client.channel(name)

        @channel.on_message
        def deliver(data, meta):
            say("message", channel=name, data=data, id=meta.id, timestamp=meta.timestamp)

        @channel.on_history
        def page(result):
            messages = [{"data": m.data, "id": m.id, "sequence": m.sequence} for m in result.messages]
            say("history", channel=result.channel, messages=messages, has_more=result.has_more)

        channel.subscribe(rewind=rewind)

    def attend(name):
        presence = client.channel(name).presence

        def member(m):
            return {"client": m.client_id, "data": m.data, "joined": m.joined_at}

        presence.on_enter(lambda m: say("enter", channel=name, **member(m)))
        presence.on_update(lambda m: say("update", channel=name, **member(m)))
        presence.on_leave(lambda m: say("leave", channel=name, **member(m)))
        presence.on_members(lambda all: say("members", channel=name, members=[member(m) for m in all]))

    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    while line := await lines.readline():
        command = json.loads(line)
        match command.pop("do"):
            case "listen":
                listen(command["channel"], command.get("rewind"))
            case "resubscribe":
                client.channel(command["channel"]).subscribe()
            case "unsubscribe":
                client.channel(command["channel"]).unsubscribe()
            case "publish":
                client.channel(command["channel"]).publish(command["data"], **command.get("options", {}))
            case "history":
                client.channel(command["channel"]).history(**command.get("options", {}))
            case "attend":
                attend(command["channel"])
            case "presence":
                getattr(client.channel(command["channel"]).presence, command["call"])(*command.get("with", []))
            case "count":
                for n in range(command["from"], command["to"]):
                    client.channel(command["channel"]).publish({"from": command["name"], "n": n})
                    await asyncio.sleep(0)
    await client.disconnect()
    say("bye")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3])))
